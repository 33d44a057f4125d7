//! Repositories on a real `sshd`: the promises of the storage, logins, host keys, and a server that fails.

// A test stops at what it does not expect.
#![allow(clippy::unwrap_used)]

mod harness;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use harness::Env;
use harness::sshd::Sshd;
use kvmb::storage::sftp::{Access, SftpStorage, Target};
use kvmb::storage::testing::conformance;
use kvmb::storage::{FileKind, Storage};

const NAME: &str = "aa0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcd";

/// What kvmb would tell the storage layer in this world.
fn access(env: &Env) -> Access {
    let mut access = Access::new("root");
    access.home = Some(env.path("home"));
    access.system_folder = env.path("etc-ssh");
    access
}

fn storage_at(url: &str, access: &Access) -> SftpStorage {
    SftpStorage::new(Target::parse(url).unwrap(), access).unwrap()
}

fn storage(env: &Env, sshd: &Sshd) -> SftpStorage {
    storage_at(&sshd.url("repo"), &access(env))
}

#[test]
fn sftp_conforms() {
    let env = Env::new("sftp-conforms");
    let sshd = env.sshd();
    sshd.befriend();
    conformance(&storage(&env, &sshd));
}

#[test]
fn files_are_private_and_lie_where_a_local_repository_has_them() {
    let env = Env::new("sftp-layout");
    let sshd = env.sshd();
    sshd.befriend();
    let storage = storage_at(&sshd.url("deep/repo"), &access(&env));
    storage.create_layout().unwrap();
    storage.write(FileKind::Pack, NAME, b"x").unwrap();
    storage.write(FileKind::Config, "", b"c").unwrap();
    let root = sshd.home().join("deep/repo");
    let mode = |path: &str| fs::metadata(root.join(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!([mode(""), mode("data"), mode("data/aa"), mode("keys")], [0o700; 4]);
    assert_eq!([mode(&format!("data/aa/{NAME}")), mode("config")], [0o600; 2]);
    let local = kvmb::storage::LocalStorage::new(&root);
    assert_eq!(local.read(FileKind::Pack, NAME).unwrap(), b"x");
    assert_eq!(local.list(FileKind::Pack).unwrap(), storage.list(FileKind::Pack).unwrap());
}

#[test]
fn a_connection_that_broke_is_an_error_that_passes_and_the_next_call_connects_anew() {
    let env = Env::new("sftp-broken");
    let sshd = env.sshd();
    sshd.befriend();
    let storage = storage(&env, &sshd);
    storage.create_layout().unwrap();
    sshd.stop();
    let error = storage.write(FileKind::Pack, NAME, b"x").unwrap_err();
    assert!(error.is_transient(), "{error:?}");
    let error = storage.size(FileKind::Pack, NAME).unwrap_err();
    assert!(error.is_transient() && error.to_string().contains("cannot connect"), "{error:?}");
    sshd.run();
    storage.write(FileKind::Pack, NAME, b"x").unwrap();
    assert_eq!(storage.read(FileKind::Pack, NAME).unwrap(), b"x");
}
