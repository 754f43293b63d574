//! The list of guards in `tests/guards.py` still fits the code. What it proves takes long, and is
//! proven by `make guards`.

use std::path::Path;
use std::process::Command;

#[test]
fn each_guard_is_where_its_list_says_and_has_its_test() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guards.py");
    let checked = Command::new("python3").arg(script).arg("--check").output().expect("python3");
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
}
