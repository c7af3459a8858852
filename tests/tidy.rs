//! The house rules that a compiler does not know, each a test that names file, line and rule.
//!
//! Reads the tree as text: comments and strings are blanked first where a rule is about code. The last tests feed the
//! readers known offences, so that a rule which silently stopped finding anything would fail here.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// The floors, lowest first, as in docs/architecture.md: a module uses lower floors only, never a neighbour.
const FLOORS: &[&[&str]] = &[
    &["types"],
    &["keyspace", "limits", "projection", "runtime"],
    &["placement", "storage", "wire"],
    &["client", "raft"],
    &["catalog", "orders", "shard"],
    &["node"],
    &["control", "recover"],
    &["ops", "service"],
    &["server"],
    &["fuzzing"],
];

/// Modules that do no I/O, start nothing, read no clock and know no protobuf.
const PURE: &[&str] = &["types", "keyspace", "limits", "projection", "placement"];
const IMPURE_WORDS: &[&str] = &["tokio::", "std::fs", "std::net", "std::thread", "prost::", "tonic::", "wire::proto"];

/// Where a crate may be named (path prefixes under `src/`).
const CONFINED: &[(&str, &[&str])] = &[
    ("tonic::", &["wire/", "service/", "client/channel", "node/transport", "cli/bench/", "server/tests"]),
    (
        "prost::",
        &["wire/", "service/", "client/channel", "node/transport", "node/replicas", "raft/", "shard/", "cli/bench/"],
    ),
    ("openraft::", &["raft/"]),
    ("rocksdb::", &["storage/"]),
];

/// What may lie at the top of the repository.
const TOP_LEVEL: &[&str] = &[
    ".ci",
    ".clippy.toml",
    ".config",
    ".deny.toml",
    ".gitignore",
    ".rustfmt.toml",
    "CHANGELOG.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "cluster",
    "docs",
    "jepsen",
    "proto",
    "src",
    "tests",
];

/// Lines before a file's tests after which to look for a second idea in it (a note), and after which there surely is
/// one (a failure).
const LINES_NOTED: usize = 500;
const LINES_MAX: usize = 800;

/// Words an opening essay has at least.
const ESSAY_WORDS: usize = 40;

struct Source {
    /// Relative to the repository, with forward slashes.
    path: String,
    text: String,
}

impl Source {
    /// Path under `src/`, or none.
    fn in_src(&self) -> Option<&str> {
        self.path.strip_prefix("src/")
    }

    /// The floor module it belongs to, or none (`lib.rs`, `main.rs`, `cli/`).
    fn module(&self) -> Option<&str> {
        let first = self.in_src()?.split('/').next()?;
        let first = first.strip_suffix(".rs").unwrap_or(first);
        floor_of(first).map(|_| first)
    }
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every file of the project: those git knows or would add; without git, everything but build output.
fn files() -> Vec<Source> {
    let listed = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output();
    let mut paths: Vec<String> = match listed {
        Ok(output) if output.status.success() && !output.stdout.is_empty() => String::from_utf8_lossy(&output.stdout)
            .split('\0')
            .filter(|path| !path.is_empty())
            .map(str::to_owned)
            .collect(),
        _ => walk(&root(), &root()),
    };
    paths.sort();
    paths.dedup();
    paths
        .into_iter()
        .filter_map(|path| {
            let bytes = fs::read(root().join(&path)).ok()?;
            String::from_utf8(bytes).ok().map(|text| Source { path, text })
        })
        .collect()
}

fn walk(base: &Path, directory: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).expect("a readable directory of the project").flatten() {
        let path = entry.path();
        let name = entry.file_name();
        if path.is_dir() {
            if name != ".git" && name != "target" && !path.ends_with("cluster/data") {
                found.extend(walk(base, &path));
            }
        } else {
            found.push(path.strip_prefix(base).expect("below the base").to_string_lossy().replace('\\', "/"));
        }
    }
    found
}

fn rust_files() -> Vec<Source> {
    files().into_iter().filter(|file| file.path.ends_with(".rs")).collect()
}

fn floor_of(module: &str) -> Option<usize> {
    FLOORS.iter().position(|floor| floor.contains(&module))
}

/// The text with comments and the contents of strings and characters blanked, line breaks kept.
fn code_of(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut code = String::with_capacity(text.len());
    let mut at = 0;
    let blank = |code: &mut String, part: &str| code.extend(part.chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
    while at < bytes.len() {
        let rest = &text[at..];
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            block_comment(rest)
        } else if let Some(length) = raw_string(rest, code.chars().last()) {
            length
        } else if rest.starts_with('"') {
            quoted(rest)
        } else if let Some(length) = character(rest) {
            length
        } else {
            let next = rest.chars().next().expect("not at the end");
            code.push(next);
            at += next.len_utf8();
            continue;
        };
        blank(&mut code, &rest[..length]);
        at += length;
    }
    code
}

fn block_comment(rest: &str) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while at < rest.len() {
        if rest[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if rest[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += rest[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    rest.len()
}

fn raw_string(rest: &str, before: Option<char>) -> Option<usize> {
    if before.is_some_and(|c| c.is_alphanumeric() || c == '_') {
        return None;
    }
    let after = rest.strip_prefix("br").or_else(|| rest.strip_prefix('r'))?;
    let hashes = after.len() - after.trim_start_matches('#').len();
    let body = after[hashes..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    let prefix = rest.len() - body.len();
    Some(body.find(&end).map_or(rest.len(), |found| prefix + found + end.len()))
}

fn quoted(rest: &str) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

/// The length of a character literal at the start; none for a lifetime.
fn character(rest: &str) -> Option<usize> {
    let body = rest.strip_prefix('\'')?;
    if let Some(escaped) = body.strip_prefix('\\') {
        return escaped.char_indices().skip(1).find(|(_, c)| *c == '\'').map(|(at, _)| at + 3);
    }
    let first = body.chars().next()?;
    body[first.len_utf8()..].starts_with('\'').then_some(first.len_utf8() + 2)
}

fn line_of(text: &str, at: usize) -> usize {
    text[..at].matches('\n').count() + 1
}

/// Every `(line, module)` that the code names as `crate::module…`, also inside `crate::{…}`, and by `super::` that
/// climbs to the root.
fn named_modules(code: &str) -> Vec<(usize, String)> {
    let mut named = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let word_before = code[..at].chars().last().is_some_and(|c| c.is_alphanumeric() || c == '_');
        if !word_before {
            let start = at + "crate::".len();
            named.extend(heads(&code[start..]).into_iter().map(|(offset, name)| (line_of(code, start + offset), name)));
        }
    }
    named
}

/// The first identifier of a path, or of each path in a braced group.
fn heads(path: &str) -> Vec<(usize, String)> {
    let identifier =
        |from: usize| -> String { path[from..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect() };
    if !path.starts_with('{') {
        return vec![(0, identifier(0))];
    }
    let mut found = Vec::new();
    let mut depth = 0;
    let mut expecting = false;
    for (at, c) in path.char_indices() {
        match c {
            '{' => {
                depth += 1;
                expecting = depth == 1;
            }
            '}' => {
                depth -= 1;
                if depth == 0 {
                    break;
                }
            }
            ',' => expecting = depth == 1,
            c if c.is_whitespace() => {}
            _ if expecting => {
                found.push((at, identifier(at)));
                expecting = false;
            }
            _ => {}
        }
    }
    found
}

/// Panics with every problem on a line of its own.
fn report(rule: &str, problems: &[String]) {
    let mut text = String::new();
    for problem in problems {
        let _ = writeln!(text, "  {problem}");
    }
    assert!(problems.is_empty(), "{rule}\n{text}");
}

#[test]
fn modules_use_lower_floors_only() {
    let mut problems = Vec::new();
    for file in rust_files() {
        let Some(module) = file.module() else { continue };
        let floor = floor_of(module).expect("a module on a floor");
        let code = code_of(&file.text);
        for (line, used) in named_modules(&code) {
            match floor_of(&used) {
                Some(other) if used != module && other >= floor => problems.push(format!(
                    "{}:{line}: {module} (floor {floor}) uses {used} (floor {other}); only lower floors may be used",
                    file.path
                )),
                _ => {}
            }
        }
        for climb in ["super::super::", "super::"] {
            let reaches_root = match climb {
                "super::" => file.path.ends_with("/mod.rs"),
                _ => file.in_src().is_some_and(|path| path.split('/').count() == 2),
            };
            for (at, _) in code.match_indices(climb).filter(|_| reaches_root) {
                let (_, used) = heads(&code[at + climb.len()..]).remove(0);
                if floor_of(&used).is_some_and(|other| other >= floor) && used != module {
                    problems.push(format!("{}:{}: reaches {used} through {climb}", file.path, line_of(&code, at)));
                }
            }
        }
    }
    report("A module may use lower floors only, never a neighbour or a higher one (docs/architecture.md):", &problems);
}

#[test]
fn every_module_stands_on_a_floor_and_in_floor_order() {
    let lib = fs::read_to_string(root().join("src/lib.rs")).expect("src/lib.rs");
    let listed: Vec<&str> = lib
        .lines()
        .filter_map(|line| line.strip_prefix("pub mod "))
        .filter_map(|rest| rest.strip_suffix(';'))
        .collect();
    let mut problems: Vec<String> = listed
        .iter()
        .filter(|m| floor_of(m).is_none())
        .map(|m| format!("src/lib.rs: {m} stands on no floor"))
        .collect();
    let floors: Vec<usize> = listed.iter().filter_map(|m| floor_of(m)).collect();
    if !floors.is_sorted() {
        problems.push(format!("src/lib.rs: modules are not in floor order: {listed:?}"));
    }
    let walked = fs::read_to_string(root().join("docs/architecture.md")).expect("docs/architecture.md");
    let order: Vec<Option<usize>> = listed.iter().map(|m| walked.find(&format!("\n### {m}\n"))).collect();
    for (module, place) in listed.iter().zip(&order) {
        if place.is_none() {
            problems.push(format!("docs/architecture.md: no section ### {module}"));
        }
    }
    if !order.iter().flatten().is_sorted() {
        problems.push("docs/architecture.md: sections are not in the order of src/lib.rs".to_owned());
    }
    report("lib.rs is the table of contents, and docs/architecture.md walks it:", &problems);
}

#[test]
fn pure_modules_touch_nothing() {
    let mut problems = Vec::new();
    for file in rust_files() {
        if file.module().is_some_and(|module| PURE.contains(&module)) {
            let code = code_of(&file.text);
            for word in IMPURE_WORDS {
                for (at, _) in code.match_indices(word) {
                    problems.push(format!("{}:{}: {word}", file.path, line_of(&code, at)));
                }
            }
        }
    }
    report(
        "types, keyspace, limits, projection and placement do no I/O, start nothing and know no protobuf:",
        &problems,
    );
}

#[test]
fn crates_stay_where_they_belong() {
    let mut problems = Vec::new();
    for file in rust_files() {
        let Some(path) = file.in_src() else { continue };
        let code = code_of(&file.text);
        for (word, allowed) in CONFINED {
            if allowed.iter().any(|prefix| path.starts_with(prefix)) {
                continue;
            }
            for (at, _) in code.match_indices(word) {
                let part_of_longer =
                    code[..at].chars().last().is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':');
                if !part_of_longer {
                    problems.push(format!(
                        "{}:{}: {word} belongs in {}",
                        file.path,
                        line_of(&code, at),
                        allowed.join(", ")
                    ));
                }
            }
        }
    }
    report("A foreign crate is named only by the modules that hide it:", &problems);
}

#[test]
fn the_command_line_stands_on_the_client() {
    let mut problems = Vec::new();
    for file in rust_files() {
        let Some(path) = file.in_src().filter(|path| path.starts_with("cli/") || *path == "main.rs") else { continue };
        let code = code_of(&file.text);
        for (at, _) in code.match_indices("trivet::") {
            for (_, used) in heads(&code[at + "trivet::".len()..]) {
                let floor = floor_of(&used).unwrap_or(0);
                let serves = used == "server" && (path == "main.rs" || path == "cli/mod.rs");
                // What works on the data directories of stopped nodes has no server to ask.
                let offline = used == "recover" && (path == "cli/debug.rs" || path == "cli/render/recovery.rs");
                // Orders stand on the client alone, as any program does.
                let application = used == "orders";
                if (floor > 3 || used == "raft" || used == "storage") && !serves && !offline && !application {
                    problems.push(format!("{}:{}: uses {used}", file.path, line_of(&code, at)));
                }
            }
        }
    }
    report("The command line is a client like any other; only `serve` calls the server:", &problems);
}

#[test]
fn every_file_opens_with_what_it_is_for() {
    let mut problems = Vec::new();
    for file in rust_files() {
        if !file.text.starts_with("//!") {
            problems.push(format!("{}:1: does not open with a //! line", file.path));
        }
        let is_module_root = file.module().is_some_and(|module| file.path == format!("src/{module}/mod.rs"));
        if is_module_root {
            let words: usize = file
                .text
                .lines()
                .take_while(|line| line.starts_with("//!"))
                .map(|line| line.trim_start_matches("//!").split_whitespace().count())
                .sum();
            if words < ESSAY_WORDS {
                problems.push(format!(
                    "{}:1: an essay of {words} words (promise, invariants, flow, what it leaves out)",
                    file.path
                ));
            }
        }
    }
    report("Every file says what it is for; every module opens with an essay:", &problems);
}

#[test]
fn no_file_is_dead() {
    let sources = rust_files();
    let mut problems = Vec::new();
    for file in sources.iter().filter(|file| file.in_src().is_some()) {
        let path = Path::new(&file.path);
        let stem = path.file_stem().expect("a file").to_string_lossy();
        let directory = path.parent().expect("in src");
        let (name, parents) = match stem.as_ref() {
            "lib" | "main" => continue,
            "mod" => {
                let name = directory.file_name().expect("a module").to_string_lossy().into_owned();
                (name, declaring(directory.parent().expect("below src")))
            }
            _ => (stem.into_owned(), declaring(directory)),
        };
        let declared = sources.iter().filter(|source| parents.contains(&source.path)).any(|source| {
            code_of(&source.text).lines().any(|line| {
                let line = line.trim();
                line.strip_suffix(';').is_some_and(|line| line.ends_with(&format!("mod {name}")))
            })
        });
        if !declared {
            problems.push(format!("{}:1: no `mod {name};` in {}", file.path, parents.join(" or ")));
        }
    }
    report("Every file under src is part of the program:", &problems);
}

/// The files that may declare the modules lying in `directory`.
fn declaring(directory: &Path) -> Vec<String> {
    let text = directory.to_string_lossy();
    if text == "src" {
        return vec!["src/lib.rs".to_owned(), "src/main.rs".to_owned()];
    }
    vec![format!("{text}/mod.rs"), format!("{text}.rs")]
}

#[test]
fn nothing_is_left_over() {
    // Spelled in halves, so that this file does not find itself.
    let words = [
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("XX", "X:"),
        concat!("to", "do!("),
        concat!("unimple", "mented!("),
        concat!("db", "g!("),
        concat!("#[ign", "ore]"),
        concat!("/wo", "rk/"),
        concat!("/fa", "rm/"),
        concat!("/ro", "ot/"),
        concat!("/ho", "me/"),
    ];
    let mut problems = Vec::new();
    for file in files() {
        if file.path == "LICENSE" || file.path == "Cargo.lock" {
            continue;
        }
        for (number, line) in file.text.lines().enumerate() {
            for word in words {
                if line.contains(word) {
                    problems.push(format!("{}:{}: {word}", file.path, number + 1));
                }
            }
            let comment = line.trim_start();
            if file.path.ends_with(".rs")
                && ["// ---", "// ===", "// ***", "//---", "//===", "////"].iter().any(|b| comment.starts_with(b))
            {
                problems.push(format!("{}:{}: a banner; a second idea wants a second file", file.path, number + 1));
            }
        }
    }
    report("No left-overs, no banners, no paths of one machine:", &problems);
}

#[test]
fn the_top_level_stays_small() {
    let found: BTreeSet<String> =
        files().iter().filter_map(|file| file.path.split('/').next().map(str::to_owned)).collect();
    let problems: Vec<String> = found.iter().filter(|name| !TOP_LEVEL.contains(&name.as_str())).cloned().collect();
    report("Unexpected at the top of the repository:", &problems);
}

#[test]
fn files_hold_one_idea() {
    let mut problems = Vec::new();
    let is_test = |path: &str| path.starts_with("tests/") || path.contains("/tests/") || path.ends_with("/tests.rs");
    for file in rust_files().into_iter().filter(|file| !is_test(&file.path)) {
        let lines = file.text.lines().take_while(|line| !line.starts_with("#[cfg(test)]")).count();
        if lines > LINES_NOTED {
            println!("note: {}: {lines} lines before its tests; look for the second idea", file.path);
        }
        if lines > LINES_MAX {
            problems.push(format!("{}: {lines} lines before its tests, at most {LINES_MAX}", file.path));
        }
    }
    report("Files this long hold more than one idea:", &problems);
}

#[test]
fn links_in_documents_lead_somewhere() {
    let all = files();
    let mut problems = Vec::new();
    for file in all.iter().filter(|file| file.path.ends_with(".md")) {
        let directory = Path::new(&file.path).parent().expect("a file has a parent").to_path_buf();
        for (number, line) in file.text.lines().enumerate() {
            for target in link_targets(line) {
                if let Some(why) = dead(&directory, &file.text, target) {
                    problems.push(format!("{}:{}: {target}: {why}", file.path, number + 1));
                }
            }
        }
    }
    for file in &all {
        for (number, line) in file.text.lines().enumerate() {
            for (at, _) in line.match_indices("docs/") {
                let inside_longer =
                    line[..at].chars().last().is_some_and(|c| c.is_alphanumeric() || "/._-".contains(c));
                let name: String =
                    line[at..].chars().take_while(|c| c.is_ascii_alphanumeric() || "/._-".contains(*c)).collect();
                let name = name.trim_end_matches('.');
                if !inside_longer && name.ends_with(".md") && !root().join(name).exists() {
                    problems.push(format!("{}:{}: names {name}, which does not exist", file.path, number + 1));
                }
            }
        }
    }
    report("Dead links:", &problems);
}

/// The targets of `[text](target)` on a line.
fn link_targets(line: &str) -> Vec<&str> {
    line.match_indices("](").filter_map(|(at, _)| line[at + 2..].split(')').next()).collect()
}

/// Why a link leads nowhere, or none. Addresses of the web are taken as they are.
fn dead(directory: &Path, own_text: &str, target: &str) -> Option<String> {
    if target.starts_with("http://") || target.starts_with("https://") {
        return None;
    }
    let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
    let text = if path.is_empty() {
        own_text.to_owned()
    } else {
        let full = root().join(directory).join(path);
        if !full.exists() {
            return Some("no such file".to_owned());
        }
        fs::read_to_string(full).unwrap_or_default()
    };
    let anchors = text.lines().filter(|line| line.starts_with('#')).map(slug);
    (!anchor.is_empty() && !anchors.into_iter().any(|slug| slug == anchor)).then(|| "no such heading".to_owned())
}

/// The anchor under which a heading is found.
fn slug(heading: &str) -> String {
    heading
        .trim_start_matches('#')
        .trim()
        .to_lowercase()
        .chars()
        .filter_map(|c| match c {
            ' ' | '-' => Some('-'),
            c if c.is_alphanumeric() || c == '_' => Some(c),
            _ => None,
        })
        .collect()
}

#[test]
fn every_reason_is_documented() {
    let proto = fs::read_to_string(root().join("proto/trivet/v1/errors.proto")).expect("errors.proto");
    let page = fs::read_to_string(root().join("docs/errors.md")).expect("docs/errors.md");
    let problems: Vec<String> = proto
        .lines()
        .filter_map(|line| line.trim().split_once(" = "))
        .map(|(name, _)| name)
        .filter(|name| *name != "REASON_UNSPECIFIED" && name.chars().all(|c| c.is_ascii_uppercase() || c == '_'))
        .filter(|name| !page.contains(&format!("| `{name}` |")))
        .map(|name| format!("docs/errors.md: no row for {name}"))
        .collect();
    report("Every reason an error can have is explained:", &problems);
}

#[test]
fn the_readers_find_known_offences() {
    let code = code_of(
        "use crate::{node::Node, types::{self, Key}};\n// crate::server\nlet s = \"crate::ops\"; crate::raft::x();\n",
    );
    assert_eq!(
        named_modules(&code),
        vec![(1, "node".to_owned()), (1, "types".to_owned()), (3, "raft".to_owned())],
        "the reader of paths"
    );
    let code = code_of("let c = '\"'; let l: &'static str = r#\"tonic::\"#; /* tonic:: /* a */ b */ tonic::x");
    assert_eq!(code.matches("tonic::").count(), 1, "{code}");
    assert_eq!(slug("## Reads, and *age*"), "reads-and-age");
    assert_eq!(link_targets("a [b](c.md#d) e [f](g)"), vec!["c.md#d", "g"]);
    assert!(dead(Path::new("docs"), "# A title", "#another-title").is_some());
    assert!(dead(Path::new("docs"), "# A title", "#a-title").is_none());
    assert!(dead(Path::new("docs"), "", "no-such-page.md").is_some());
}

#[test]
fn nothing_ships_with_what_only_tests_use() {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).expect("Cargo.toml");
    let features = manifest.split("\n[features]\n").nth(1).expect("the crate has features");
    let features = features.split("\n[").next().unwrap_or_default();
    let code: Vec<&str> = features.lines().filter(|line| !line.trim_start().starts_with('#')).collect();
    for alone in ["planted", "fuzzing"] {
        let naming: Vec<&str> = code.iter().copied().filter(|line| line.contains(alone)).collect();
        let expected = [format!("{alone} = []")];
        assert_eq!(naming, expected, "the feature `{alone}` stands alone: no other feature may turn it on");
    }
}
