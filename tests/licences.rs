//! Every crate that is linked in may be shipped: its licence expression is satisfied by the list in `.deny.toml`.
//!
//! The same check as `cargo deny check licenses`, with nothing but cargo, because cargo-deny takes longer to compile
//! than this whole suite to run.

use std::collections::BTreeSet;
use std::process::Command;

#[test]
fn every_licence_is_allowed() {
    let root = env!("CARGO_MANIFEST_DIR");
    let settings = std::fs::read_to_string(format!("{root}/.deny.toml")).expect(".deny.toml");
    let settings: toml::Table = settings.parse().expect(".deny.toml is TOML");
    let allowed: BTreeSet<&str> = settings["licenses"]["allow"]
        .as_array()
        .expect("licenses.allow is a list")
        .iter()
        .map(|name| name.as_str().expect("a licence is named by a string"))
        .collect();

    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked", "--all-features"])
        .args(["--filter-platform", "x86_64-unknown-linux-gnu"])
        .current_dir(root)
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("cargo metadata prints JSON");
    let packages = metadata["packages"].as_array().expect("a list of packages");
    assert!(packages.len() > 50, "only {} packages: the list is not whole", packages.len());

    let refused: Vec<String> = packages
        .iter()
        .filter(|package| !package["license"].as_str().is_some_and(|text| satisfied(text, &allowed)))
        .map(|package| format!("{} {}: {}", package["name"], package["version"], package["license"]))
        .collect();
    assert!(refused.is_empty(), "licences not allowed by .deny.toml:\n{}", refused.join("\n"));
}

/// Whether an SPDX expression holds under the allowed licences: AND binds closer than OR, `/` is an old OR, and
/// "X WITH Y" is one licence.
fn satisfied(expression: &str, allowed: &BTreeSet<&str>) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let tokens: Vec<&str> = spaced.split_whitespace().collect();
    let mut at = 0;
    let holds = either(&tokens, &mut at, allowed);
    holds && at == tokens.len()
}

fn either(tokens: &[&str], at: &mut usize, allowed: &BTreeSet<&str>) -> bool {
    let mut holds = both(tokens, at, allowed);
    while tokens.get(*at) == Some(&"OR") {
        *at += 1;
        holds |= both(tokens, at, allowed);
    }
    holds
}

fn both(tokens: &[&str], at: &mut usize, allowed: &BTreeSet<&str>) -> bool {
    let mut holds = one(tokens, at, allowed);
    while tokens.get(*at) == Some(&"AND") {
        *at += 1;
        holds &= one(tokens, at, allowed);
    }
    holds
}

fn one(tokens: &[&str], at: &mut usize, allowed: &BTreeSet<&str>) -> bool {
    let Some(&token) = tokens.get(*at) else { return false };
    *at += 1;
    if token == "(" {
        let holds = either(tokens, at, allowed);
        *at += 1;
        return holds;
    }
    if tokens.get(*at) == Some(&"WITH") && tokens.len() > *at + 1 {
        let whole = format!("{token} WITH {}", tokens[*at + 1]);
        *at += 2;
        return allowed.contains(whole.as_str());
    }
    allowed.contains(token)
}

#[test]
fn expressions_are_read_as_spdx_means_them() {
    let allowed = BTreeSet::from(["MIT", "ISC", "Apache-2.0 WITH LLVM-exception"]);
    for good in [
        "MIT",
        "GPL-3.0 OR MIT",
        "MIT/Apache-2.0",
        "(GPL-2.0 OR MIT) AND ISC",
        "Apache-2.0 WITH LLVM-exception OR GPL-3.0",
    ] {
        assert!(satisfied(good, &allowed), "{good}");
    }
    for bad in ["GPL-3.0", "MIT AND GPL-3.0", "(MIT OR ISC) AND GPL-3.0", "Apache-2.0", "", "MIT MIT"] {
        assert!(!satisfied(bad, &allowed), "{bad}");
    }
}
