//! Tests of the engines together.
