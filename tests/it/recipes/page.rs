//! docs/clients.md as a list of recipes: what stands in the page is what runs here.

use std::collections::BTreeMap;

const PAGE: &str = include_str!("../../../docs/clients.md");

/// Gives the block of code that follows `<!-- recipe: NAME -->`.
#[track_caller]
pub fn recipe(name: &str) -> &'static str {
    recipes().get(name).unwrap_or_else(|| panic!("docs/clients.md has no recipe {name}"))
}

fn recipes() -> BTreeMap<&'static str, &'static str> {
    let mut all = BTreeMap::new();
    for part in PAGE.split("<!-- recipe: ").skip(1) {
        let (name, rest) = part.split_once(" -->\n```").expect("a block of code after the mark");
        let (_, code) = rest.split_once('\n').expect("a language");
        let (code, _) = code.split_once("\n```").expect("an end of the block");
        assert!(all.insert(name, code).is_none(), "docs/clients.md has the recipe {name} twice");
    }
    all
}

mod tests {
    use super::*;

    /// The sources of the tests beside this one.
    fn tests() -> String {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/recipes");
        let files = std::fs::read_dir(folder).expect("this folder");
        files.map(|file| std::fs::read_to_string(file.expect("a file").path()).expect("a file")).collect()
    }

    #[test]
    fn every_recipe_is_run_and_every_test_it_names_is_there() {
        let tests = tests();
        for name in recipes().keys() {
            assert!(tests.contains(&format!("recipe(\"{name}\")")), "no test runs the recipe {name}");
        }
        let named = PAGE.split('`').filter_map(|word| word.strip_prefix("recipes::"));
        for name in named {
            let function = name.rsplit("::").next().unwrap_or(name);
            assert!(tests.contains(&format!("fn {function}(")), "docs/clients.md names a test {name}");
        }
    }
}
