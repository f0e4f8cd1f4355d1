//! What documents claim, a test checks.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::{Path, PathBuf};

mod metrics;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Every file below `directory` with this ending.
fn files(directory: &str, ending: &str) -> Vec<PathBuf> {
    let mut found = vec![];
    let mut open = vec![root().join(directory)];
    while let Some(next) = open.pop() {
        for entry in std::fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if path.to_string_lossy().ends_with(ending) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn sources() -> Vec<PathBuf> {
    ["src", "projections", "tests"].iter().flat_map(|directory| files(directory, ".rs")).collect()
}

#[test]
fn the_domain_cannot_do_io() {
    let manifest = read("src/domain/Cargo.toml");
    for crate_name in ["tokio", "rusqlite", "sqlx", "axum", "reqwest", "object_store", "beampipe-log"] {
        let named = manifest.lines().any(|line| line.split(['.', ' ', '=']).next() == Some(crate_name));
        assert!(!named, "src/domain depends on {crate_name}");
    }
}

#[test]
fn the_log_knows_nothing_of_astronomy_and_projections_nothing_of_the_service() {
    for (manifest, forbidden) in [
        ("src/log/Cargo.toml", &["beampipe-domain", "beampipe-projections", "beampipe-core"][..]),
        ("projections/Cargo.toml", &["beampipe-core", "axum", "reqwest"][..]),
    ] {
        let text = read(manifest);
        for name in forbidden {
            assert!(!text.lines().any(|line| line.starts_with(name)), "{manifest} depends on {name}");
        }
    }
    for file in files("src/log", ".rs") {
        let text = std::fs::read_to_string(&file).unwrap();
        for word in ["beampipe_domain", "WALLABY", "DALiuGE"] {
            assert!(!text.contains(word), "{} speaks of {word}", file.display());
        }
    }
}

#[test]
fn every_invariant_in_the_architecture_names_a_test_that_exists() {
    let tests: String = sources().iter().map(|file| std::fs::read_to_string(file).unwrap()).collect();
    let page = read("docs/architecture.md");
    let section = page.split("## Invariants").nth(1).unwrap().split("\n## ").next().unwrap();
    let rows: Vec<&str> =
        section.lines().filter(|line| line.starts_with("| ") && line.contains('`')).collect();
    assert!(rows.len() > 5);
    for row in rows {
        let names = row.rsplit('|').nth(1).unwrap();
        for name in names.split('`').skip(1).step_by(2) {
            assert!(tests.contains(&format!("fn {name}")), "no test is called {name}");
        }
    }
}

#[test]
fn every_link_between_documents_leads_somewhere() {
    let mut pages = files("docs", ".md");
    pages.extend(["README.md", "CHANGELOG.md"].map(|page| root().join(page)));
    for page in pages {
        let text = std::fs::read_to_string(&page).unwrap();
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = target.split('#').next().unwrap();
            if file.is_empty() || target.contains("://") {
                continue;
            }
            let path = page.parent().unwrap().join(file);
            assert!(path.exists(), "{}: {target} leads nowhere", page.display());
        }
    }
}

#[test]
fn every_alert_has_its_runbook() {
    let headings: BTreeSet<String> = read("docs/operating.md")
        .lines()
        .filter_map(|line| line.strip_prefix("### "))
        .map(|heading| heading.trim().to_lowercase())
        .collect();
    let rules = read("prometheus.rules.yml");
    let mut seen = 0;
    for anchor in rules.lines().filter_map(|line| line.trim().strip_prefix("runbook_url: docs/operating.md#"))
    {
        assert!(headings.contains(anchor.trim()), "docs/operating.md has no section {anchor}");
        seen += 1;
    }
    assert!(seen > 5);
}

/// The page that is generated from the codec and the golden samples.
fn event_reference() -> String {
    let mut page = String::from(
        "# Events\n\nGenerated from the codec's table and the golden samples; `UPDATE_REFERENCE=1 cargo nextest run \
         event_reference` writes it anew.\nPrivate fields are stored and shown to nobody.\n",
    );
    for (event_type, version) in beampipe::codec::TYPES {
        let sample = read(&format!("tests/golden/events/{event_type}.v{version}.json"));
        let sample: serde_json::Value = serde_json::from_str(&sample).unwrap();
        write!(page, "\n## `{event_type}` version {version}\n\n").unwrap();
        let private = beampipe::codec::private_fields(event_type);
        if !private.is_empty() {
            writeln!(page, "Private: {}\n", private.join(", ")).unwrap();
        }
        write!(page, "```json\n{sample:#}\n```\n").unwrap();
    }
    page
}

#[test]
fn the_event_reference_is_what_the_code_does() {
    let path = root().join("docs/reference/events.md");
    if std::env::var_os("UPDATE_REFERENCE").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, event_reference()).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(written == event_reference(), "docs/reference/events.md is old: see its first lines");
}

#[test]
fn nothing_speaks_of_a_later_that_never_comes() {
    let mut all = sources();
    all.extend(files("docs", ".md"));
    let this = root().join("tests/it/tidy.rs");
    for file in all.into_iter().filter(|file| *file != this) {
        let text = std::fs::read_to_string(&file).unwrap();
        for word in ["for now", "TODO", "FIXME", "todo!(", "unimplemented!(", "#[ignore"] {
            assert!(!text.contains(word), "{} says {word:?}", file.display());
        }
    }
}

#[test]
fn every_file_of_tests_is_part_of_the_binary() {
    for file in files("tests/it", ".rs") {
        let (parent, name) = (file.parent().unwrap(), file.file_stem().unwrap().to_string_lossy());
        if name == "main" {
            continue;
        }
        // `a/b.rs` is named by `a.rs`; what is at the top by `main.rs`.
        let top = parent.ends_with("tests/it");
        let owner = if top { parent.join("main.rs") } else { parent.with_extension("rs") };
        let text = std::fs::read_to_string(&owner).unwrap();
        let named = text.lines().any(|line| line.trim_start_matches("pub ").trim() == format!("mod {name};"));
        assert!(named, "{} does not name {}: its tests do not run", owner.display(), file.display());
    }
}
