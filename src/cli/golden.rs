//! Golden files: what a pure function renders, kept as text beside the code. `UPDATE_GOLDENFILES=1 cargo test` rewrites
//! them; the difference is then read like any other change.

use std::path::Path;

/// Fails unless `text` is what `src/cli/golden/<name>.txt` holds.
pub fn check(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cli/golden").join(format!("{name}.txt"));
    if std::env::var_os("UPDATE_GOLDENFILES").is_some_and(|set| set == "1") {
        std::fs::write(&path, text).expect("a golden file can be written");
    }
    let expected = std::fs::read_to_string(&path).expect("the golden file exists; UPDATE_GOLDENFILES=1 makes it");
    let first = text.lines().zip(expected.lines()).enumerate().find(|(_, (found, wanted))| found != wanted);
    if let Some((number, (found, wanted))) = first {
        panic!("{name}.txt differs at line {}:\n  golden: {wanted}\n  now:    {found}", number + 1);
    }
    assert_eq!(text.len(), expected.len(), "{name}.txt has more or fewer lines than what is rendered now");
}
