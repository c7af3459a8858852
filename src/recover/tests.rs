//! Plans and their application.
