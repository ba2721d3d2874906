//! `packmirror doctor --client`: what is wrong on a client is named, and its advice is what mends it.

use std::collections::BTreeMap;

use super::page::recipe;
use super::{PASSWORD, Scene, USER};
use crate::git::finish;
use crate::mirror_only;

/// Codes with their advice, and whether all is well.
pub type Found = (bool, BTreeMap<String, String>);

#[track_caller]
pub fn doctor(scene: &Scene, address: &str, more: &[&str]) -> Found {
    let mut command = scene.client.command("packmirror");
    command.args(["doctor", "--json", "--client", address]).args(more);
    let out = finish(command, b"", std::time::Duration::from_secs(90));
    let said = out.text();
    assert!(!said.contains("s3cret") && !out.stderr.contains("s3cret"), "{said}{}", out.stderr);
    let report: serde_json::Value =
        serde_json::from_str(&said).unwrap_or_else(|e| panic!("{e}: {said}{}", out.stderr));
    let word = |check: &serde_json::Value, key: &str| check[key].as_str().unwrap_or_default().to_owned();
    let checks = report["checks"].as_array().expect("checks");
    let found = checks.iter().map(|check| (word(check, "code"), word(check, "advice"))).collect();
    assert_eq!(report["ok"].as_bool(), Some(out.ok()), "{said}");
    (out.ok(), found)
}

#[track_caller]
pub fn codes(found: &Found) -> Vec<&str> {
    found.1.keys().map(|code| code.trim_start_matches("client.")).collect()
}

const WELL: [&str; 4] = ["address-ok", "answer-ok", "credential-ok", "git-ok"];

#[test]
fn the_doctors_advice_makes_a_client_well() {
    mirror_only!();
    let scene = Scene::new();
    let (client, url, via) = (&scene.client, scene.url(&scene.repo.path), ["--via", &scene.node.url]);
    client.remember_the_password();
    let found = doctor(&scene, &url, &via);
    assert_eq!((found.0, codes(&found)), (false, vec!["git-ok", "no-rule"]));
    client.shell(&found.1["client.no-rule"]).must();
    let found = doctor(&scene, &url, &[]);
    assert!(!found.0);
    assert!(codes(&found).contains(&"no-credential") && codes(&found).contains(&"refused"), "{found:?}");
    client.shell(&found.1["client.no-credential"]).must();
    let found = doctor(&scene, &url, &via);
    assert_eq!((found.0, codes(&found)), (true, WELL.to_vec()));
    scene.by_the_mirror(|| client.git(&format!("clone -q {url} app")).must());
    // The mirror's own address needs no rule.
    assert_eq!(codes(&doctor(&scene, &scene.node.repo(&scene.repo.path), &via)), WELL);
    // Text for people says the same.
    let mut command = client.command("packmirror");
    command.args(["doctor", "--client", &url]);
    let text = finish(command, b"", std::time::Duration::from_secs(90)).must().text();
    assert!(text.contains("Nothing is wrong.") && text.contains(&format!("for {USER}")), "{text}");
}

#[test]
fn the_doctor_sees_an_address_that_misses_its_rule() {
    mirror_only!();
    let scene = Scene::new();
    scene.client.remember_the_password();
    scene.client.follow(recipe("developer"));
    let named = scene.primary.url.replacen("://", &format!("://{USER}@"), 1) + "/" + &scene.repo.path;
    let found = doctor(&scene, &named, &[]);
    assert_eq!((found.0, codes(&found)), (false, vec!["git-ok", "spelling"]));
    scene.client.shell(&found.1["client.spelling"]).must();
    assert_eq!(codes(&doctor(&scene, &named, &[])), WELL);
    scene.by_the_mirror(|| scene.client.git(&format!("clone -q {named} named")).must());
    // A password in an address is neither shown nor written into a configuration.
    let secret = named.replacen(&format!("{USER}@"), &format!("{USER}:s3cret@"), 1);
    let found = doctor(&scene, &secret, &[]);
    assert_eq!(codes(&found), ["git-ok", "spelling"]);
    assert!(!found.1["client.spelling"].contains("git config"), "{found:?}");
}

#[test]
fn the_doctor_tells_other_faults_of_a_client_apart() {
    mirror_only!();
    let scene = Scene::new();
    let url = scene.url(&scene.repo.path);
    let with = |lines: &str, more: &[&str]| {
        let _ = std::fs::remove_file(scene.client.home.join(".gitconfig"));
        scene.client.follow(lines);
        let found = doctor(&scene, &url, more);
        codes(&found).join(" ")
    };
    let rule = "git config --global url.https://mirror.eu.example.com/.insteadOf https://git.example.com/\n";
    assert_eq!(with(rule, &[]), "address-ok anonymous git-ok refused");
    assert_eq!(with(rule, &["--via", "https://mirror.us.example.com"]), "git-ok other-host");
    let gone = "git config --global url.http://127.0.0.1:1/.insteadOf https://git.example.com/";
    assert_eq!(with(gone, &[]), "address-ok anonymous git-ok unreachable");
    let clear = "git config --global url.http://mirror.invalid/.insteadOf https://git.example.com/";
    assert_eq!(with(clear, &[]), "address-ok anonymous git-ok in-the-clear unreachable");
    let more = "git config --global http.sslVerify false\ngit config --global lfs.url https://lfs.example.com/\n\
                git config --global http.https://mirror.eu.example.com.proxy http://127.0.0.1:1";
    assert_eq!(
        with(&format!("{rule}{more}"), &[]),
        "address-ok anonymous git-ok lfs proxy unreachable unverified"
    );
    let quoted = PASSWORD.replace('\'', "'\\''");
    let two = format!(
        "{rule}git config --global credential.helper store\n\
         printf 'url=https://git.example.com\\nusername={USER}\\npassword=%s\\n\\n' '{quoted}' | git credential approve\n\
         printf 'url=https://mirror.eu.example.com\\nusername={USER}\\npassword=old\\n\\n' | git credential approve"
    );
    assert_eq!(with(&two, &[]), "address-ok credential-differs git-ok refused");
    let missing = doctor(&scene, &scene.url("team/none.git"), &[]);
    assert!(
        codes(&missing).contains(&"no-repository") || codes(&missing).contains(&"refused"),
        "{missing:?}"
    );
}
