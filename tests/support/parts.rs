//! The programs that the tests need. A missing one is a failure that says how to install it.

use std::path::{Path, PathBuf};

/// Fails with the command that installs missing programs.
pub fn require(programs: &[&str]) {
    let missing: Vec<&str> = programs.iter().copied().filter(|program| find(program).is_none()).collect();
    assert!(missing.is_empty(), "the tests need {}; as root run: .ci/install-parts", missing.join(", "));
}

/// Returns the path of a program.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")])
        .map(|folder| folder.join(program))
        .find(|candidate| candidate.is_file())
}

/// Returns the folder for data that is built or probed once for all test programs: the Linux guest, QEMU's
/// capabilities.
pub fn cache_dir() -> PathBuf {
    // The program under test is in <target>/<profile>/.
    Path::new(env!("CARGO_BIN_EXE_kvmb")).ancestors().nth(2).expect("the target folder").join("test-parts")
}
