//! Copies small files on network storage, mostly firmware variables, with `qemu-img`, which supports the protocols.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::NamedTempFile;
use zeroize::Zeroizing;

use crate::bounded::{self, Group};
use crate::capture::connection::Hypervisor;
use crate::capture::domain_xml::source::{DiskSource, SecretRef};
use crate::capture::error::{Error, Result};
use crate::capture::ffi;
use crate::capture::offline::network_storage::network_options;

/// The time limit for a server, for a few megabytes.
const LIMIT: Duration = Duration::from_secs(60);

/// Returns the value of a secret.
pub(in crate::capture) type Secrets<'a> = &'a dyn Fn(&SecretRef) -> Result<Zeroizing<Vec<u8>>>;

/// Network storage that will be read or written.
struct Remote {
    address: String,
    options: Value,
    /// The ids of secrets and the files that contain them. Dropping this removes the files.
    secrets: Vec<(String, NamedTempFile)>,
}

/// Copies network storage to a new file. Refuses data that is larger than the limit.
pub(in crate::capture) fn fetch(source: &DiskSource, secrets: Secrets, to: &Path, limit_bytes: u64) -> Result<()> {
    let folder = to.parent().unwrap_or(Path::new("/"));
    let remote = Remote::new(source, secrets, folder)?;
    let info = remote.run(|command, remote| {
        command.args(["info", "--output=json", "-f", "raw"]).args(remote.objects()).arg(remote.name());
    })?;
    let info: Value = serde_json::from_slice(&info.stdout).unwrap_or_default();
    let size_bytes = info["virtual-size"].as_u64().unwrap_or(u64::MAX);
    if size_bytes > limit_bytes {
        return Err(Error::TooLarge { path: remote.address.into(), size_bytes, limit_bytes });
    }
    let copied = remote.run(|command, remote| {
        command.args(["convert", "-q", "-f", "raw", "-O", "raw"]).args(remote.objects()).arg(remote.name()).arg(to);
    });
    copied.map(drop).inspect_err(|_| {
        // An incomplete copy is removed.
        let _ = std::fs::remove_file(to);
    })
}

impl Hypervisor {
    /// Writes a small file to existing network storage.
    pub(crate) fn write_network_file(&self, source: &DiskSource, bytes: &[u8]) -> Result<()> {
        let folder = std::env::temp_dir();
        let failed = |error| Error::io("write", &folder)(error);
        let mut file = NamedTempFile::new().map_err(failed)?;
        file.write_all(bytes).map_err(failed)?;
        let secret_value = |secret: &SecretRef| {
            let secret = secret.clone();
            self.link.call(|| "read a secret".to_owned(), move |connect| ffi::secret_value(connect, &secret))
        };
        let remote = Remote::new(source, &secret_value, &folder)?;
        let written = remote.run(|command, remote| {
            command.args(["convert", "-q", "-n", "-f", "raw", "-O", "raw"]).args(remote.objects());
            command.arg(file.path()).arg(remote.name());
        });
        written.map(drop)
    }
}

impl Remote {
    fn new(source: &DiskSource, secrets: Secrets, folder: &Path) -> Result<Remote> {
        let mut wanted = Vec::new();
        let storage = network_options(source, "file", &mut wanted)?;
        let mut files = Vec::new();
        for (id, secret) in wanted {
            let mut file = NamedTempFile::new_in(folder).map_err(Error::io("create", folder))?;
            file.write_all(&secrets(&secret)?).map_err(Error::io("write", folder))?;
            files.push((id, file));
        }
        let options = json!({ "driver": "raw", "file": storage });
        Ok(Remote { address: source.address(), options, secrets: files })
    }

    fn name(&self) -> String {
        format!("json:{}", self.options)
    }

    fn objects(&self) -> Vec<String> {
        let object = |(id, file): &(String, NamedTempFile)| {
            let object = json!({ "qom-type": "secret", "id": id, "file": file.path() });
            ["--object".to_owned(), object.to_string()]
        };
        self.secrets.iter().flat_map(object).collect()
    }

    fn run(&self, arguments: impl FnOnce(&mut Command, &Remote)) -> Result<Output> {
        let failed = |message: String| Error::Program { program: "qemu-img", subject: self.address.clone(), message };
        let mut command = Command::new("qemu-img");
        arguments(&mut command, self);
        command.env("LC_ALL", "C").stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        let output = bounded::output(command, Group::Own, LIMIT, &bounded::ending());
        let output = output.map_err(|error| failed(error.to_string()))?;
        match output.status.success() {
            true => Ok(output),
            false => Err(failed(String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; "))),
        }
    }
}
