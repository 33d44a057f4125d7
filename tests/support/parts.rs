//! The programs that the tests need: all there, or a failure that says how to get them.

use std::path::{Path, PathBuf};

/// Fails with the command that installs what is missing.
pub fn require(programs: &[&str]) {
    let missing: Vec<&str> = programs.iter().copied().filter(|program| find(program).is_none()).collect();
    assert!(missing.is_empty(), "the tests need {}; as root run: .ci/install-parts", missing.join(", "));
}

/// Where a program is.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")])
        .map(|folder| folder.join(program))
        .find(|candidate| candidate.is_file())
}

/// What is built or probed once and used by all test programs: the Linux guest, what libvirt found out about QEMU.
pub fn cache_dir() -> PathBuf {
    // The program under test is in <target>/<profile>/.
    Path::new(env!("CARGO_BIN_EXE_kvmb")).ancestors().nth(2).expect("the target folder").join("test-parts")
}
