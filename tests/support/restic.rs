//! restic, to check a repository.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{Call, Env, Output};

/// restic for one repository.
pub struct Restic<'e> {
    env: &'e Env,
    repo: String,
}

impl<'e> Restic<'e> {
    pub(super) fn new(env: &'e Env, repo: String) -> Restic<'e> {
        Restic { env, repo }
    }

    /// Runs any restic command.
    pub fn call<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Call {
        self.env.program("restic").args(["-q", "-r", &self.repo]).args(args)
    }

    /// Creates the repository.
    pub fn init(&self) {
        self.call(["init", "--repository-version", "2"]).run().assert_ok();
    }

    /// Backs up a folder.
    pub fn backup(&self, folder: &Path) {
        self.call([OsStr::new("backup"), folder.as_os_str()]).run().assert_ok();
    }

    /// Checks the whole repository, including all data; fails if restic finds errors.
    pub fn check(&self) -> Output {
        self.call(["check", "--read-data"]).run().assert_ok()
    }

    /// Returns the snapshots as in restic's JSON.
    pub fn snapshots(&self) -> Vec<Value> {
        let output = self.call(["snapshots", "--json"]).run().assert_ok();
        match serde_json::from_str(output.stdout()) {
            Ok(Value::Array(snapshots)) => snapshots,
            Ok(Value::Null) => Vec::new(),
            _ => panic!("not what restic prints:\n{output}"),
        }
    }

    /// Returns the paths in a snapshot.
    pub fn ls(&self, snapshot: &str) -> Vec<String> {
        let output = self.call(["ls", snapshot]).run().assert_ok();
        let lines = output.stdout().lines();
        lines.filter(|line| line.starts_with('/')).map(str::to_owned).collect()
    }

    /// Returns the content of a file.
    pub fn dump(&self, snapshot: &str, path: &str) -> Vec<u8> {
        self.call(["dump", snapshot, path]).run().assert_ok().stdout
    }

    /// Returns the SHA-256 of a file of any size.
    pub fn dump_sha256(&self, snapshot: &str, path: &str) -> String {
        let mut command = Command::new("restic");
        self.env.apply_to(&mut command);
        let mut child = command
            .args(["-q", "-r", &self.repo, "dump", snapshot, path])
            .stdout(Stdio::piped())
            .spawn()
            .expect("restic");
        let mut hasher = Sha256::new();
        std::io::copy(&mut child.stdout.take().expect("stdout"), &mut hasher).expect("restic dump");
        assert!(child.wait().expect("wait").success(), "restic dump {snapshot} {path}");
        hex::encode(hasher.finalize())
    }
}
