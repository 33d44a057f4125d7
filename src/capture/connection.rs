//! The hypervisor: finds machines, networks and filters by name.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use virt::connect::Connect;
use virt::domain::Domain;

use crate::capture::domain_xml::references::MachineType;
use crate::capture::domain_xml::source::SecretRef;
use crate::capture::error::{Error, LibvirtErrorKind, Result};
use crate::capture::ffi;
use crate::capture::limits::CallLimits;
use crate::capture::link::{SharedConnection, default_uri, embedded_root, is_local_uri};
use crate::capture::machine::{Machine, define};
use crate::glob::{self, is_glob};
use crate::suggest::similar_names;

/// An open connection to libvirt.
#[derive(Debug, Clone)]
pub struct Hypervisor {
    pub(super) link: Arc<SharedConnection>,
}

impl Hypervisor {
    /// Opens a connection with the default limits.
    pub fn open(uri: Option<&str>) -> Result<Hypervisor> {
        Hypervisor::open_within(uri, &CallLimits::default())
    }

    /// Opens a connection. Without a URI, libvirt chooses one as for `virsh` (`$LIBVIRT_DEFAULT_URI`, its client
    /// configuration, then what it finds). The user is never prompted: a connection that requires a password fails.
    pub(crate) fn open_within(uri: Option<&str>, limits: &CallLimits) -> Result<Hypervisor> {
        Ok(Hypervisor { link: Arc::new(SharedConnection::open(uri, limits)?) })
    }

    /// Whether [`Hypervisor::open`] with this URI runs libvirt inside this process, which then excludes all other
    /// processes until it exits.
    pub(crate) fn would_be_embedded(uri: Option<&str>) -> bool {
        uri.map(str::to_owned).or_else(default_uri).is_some_and(|uri| uri.starts_with("qemu:///embed"))
    }

    /// The connection's URI, as reported by libvirt.
    pub(crate) fn uri(&self) -> &str {
        &self.link.uri
    }

    /// Whether this is QEMU on this host, which a capture requires because it accesses disks and sockets by path.
    pub fn is_local(&self) -> bool {
        is_local_uri(self.uri())
    }

    /// libvirt's version on the side of the hypervisor: (11, 3, 0).
    pub(crate) fn libvirt_version(&self) -> Result<(u32, u32, u32)> {
        let version = self.link.call(|| "query the version of libvirt".to_owned(), |connect| connect.lib_version())?;
        Ok(split_version(version))
    }

    /// QEMU's version: (10, 0, 2).
    pub(crate) fn qemu_version(&self) -> Result<(u32, u32, u32)> {
        let version = self.link.call(|| "query the version of QEMU".to_owned(), |connect| connect.hyp_version())?;
        Ok(split_version(version))
    }

    /// Returns the machines with these names or UUIDs or that match these globs (`*`, `?`, `[a-z]`), each once, sorted
    /// by name; all machines if `names` is empty. `web*` also matches a machine that is literally named `web*`. A name
    /// without a machine is an error.
    pub fn machines(&self, names: &[String]) -> Result<Vec<Machine>> {
        let mut all = Vec::new();
        let action = || format!("list the machines of {}", self.uri());
        for domain in self.link.call(action, |connect| connect.list_all_domains(0))? {
            // A transient machine may disappear between the two calls.
            if let Ok(machine) = Machine::new(domain, &self.link) {
                all.push(machine);
            }
        }
        all.sort_by(|a, b| a.name().cmp(b.name()));
        if names.is_empty() {
            return Ok(all);
        }
        let mut chosen = vec![false; all.len()];
        for name in names {
            let mut found: Vec<usize> = positions(&all, |machine| machine.is_called(name));
            if found.is_empty() && is_glob(name) {
                found = positions(&all, |machine| glob::matches(name, machine.name()));
            }
            if found.is_empty() {
                return Err(self.no_such_machine(name, &all));
            }
            for at in found {
                chosen[at] = true;
            }
        }
        Ok(all.into_iter().zip(chosen).filter_map(|(machine, chosen)| chosen.then_some(machine)).collect())
    }

    /// Returns the machine with this name or UUID.
    pub fn machine(&self, name_or_uuid: &str) -> Result<Machine> {
        let found = if name_or_uuid.contains('\0') {
            None
        } else {
            let wanted = name_or_uuid.to_owned();
            self.link.call(
                || format!("look up {name_or_uuid}"),
                move |connect| match connect.lookup_domain_by_name(&wanted) {
                    Ok(domain) => Ok(Some(domain)),
                    Err(_) => Ok(connect.lookup_domain_by_uuid_string(&wanted).ok()),
                },
            )?
        };
        match found {
            Some(domain) => Machine::new(domain, &self.link),
            None => {
                let all = self.machines(&[])?;
                Err(self.no_such_machine(name_or_uuid, &all))
            }
        }
    }

    /// Defines a machine, or redefines the one with this name and UUID. The schema check is skipped only if it alone,
    /// not the meaning of the definition, is what libvirt refuses.
    pub fn define(&self, xml: &str) -> Result<Machine> {
        if xml.contains('\0') {
            return Err(crate::capture::domain_xml::definition::DefinitionError::Xml("a zero byte".to_owned()).into());
        }
        let xml = xml.to_owned();
        let define = move |connect: &Connect| define(connect, &xml);
        let domain = self.link.call(|| "define the machine".to_owned(), define)?;
        Machine::new(domain, &self.link)
    }

    /// Closes the connection unless a [`Machine`] or a clone of it is alive. The embedded driver always stays open.
    pub(crate) fn close(self) {}

    /// Whether a network is started; `None` if there is no such network.
    pub(crate) fn network_is_active(&self, name: &str) -> Result<Option<bool>> {
        let (action, wanted) = (|| format!("look up network {name}"), name.to_owned());
        let is_active = move |connect: &Connect| connect.lookup_network_by_name(&wanted)?.is_active();
        match self.link.call(action, is_active) {
            Ok(is_active) => Ok(Some(is_active)),
            Err(error) if matches!(error.meaning(), LibvirtErrorKind::NotFound | LibvirtErrorKind::Unsupported) => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// The emulator that libvirt selects for machines of this host's architecture.
    pub(crate) fn own_emulator(&self) -> Result<Option<PathBuf>> {
        let capabilities = self.domain_capabilities(None)?;
        let path = |xml: &str| {
            let document = roxmltree::Document::parse(xml).ok()?;
            let path = document.root_element().children().find(|node| node.has_tag_name("path"))?;
            path.text().map(PathBuf::from)
        };
        Ok(capabilities.as_deref().and_then(path))
    }

    /// Whether a QEMU of this host supports machines of this kind. True if libvirt cannot tell.
    pub(crate) fn runs(&self, kind: &MachineType) -> Result<bool> {
        Ok(self.domain_capabilities(Some(kind))?.is_some() || self.domain_capabilities(None)?.is_none())
    }

    /// Returns libvirt's capabilities for machines of a kind, or of its default kind. `None` if this host does not
    /// support them.
    fn domain_capabilities(&self, kind: Option<&MachineType>) -> Result<Option<String>> {
        let kind = kind.cloned();
        let ask = move |connect: &Connect| {
            let kind = kind.as_ref();
            let emulator = kind.and_then(|kind| kind.emulator.as_deref()).map(Path::to_string_lossy);
            let arch = kind.and_then(|kind| kind.arch.as_deref());
            let (name, virt_type) = (kind.map(|kind| &*kind.name), kind.map(|kind| &*kind.virt_type));
            connect.domain_capabilities(emulator.as_deref(), arch, name, virt_type, 0)
        };
        match self.link.call(|| "list the running machines of this host".to_owned(), ask) {
            Ok(xml) => Ok(Some(xml)),
            Err(error) => match error.meaning() {
                LibvirtErrorKind::NoConnection | LibvirtErrorKind::NoAnswer | LibvirtErrorKind::ReadOnlyUri => {
                    Err(error)
                }
                _ => Ok(None),
            },
        }
    }

    /// Whether libvirt knows a network filter.
    pub(crate) fn has_network_filter(&self, name: &str) -> Result<bool> {
        let (action, wanted) = (|| format!("look up network filter {name}"), name.to_owned());
        match self.link.call(action, move |connect| connect.lookup_nwfilter_by_name(&wanted).map(drop)) {
            Ok(()) => Ok(true),
            Err(error) if matches!(error.meaning(), LibvirtErrorKind::NotFound | LibvirtErrorKind::Unsupported) => {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Whether libvirt knows a secret. True if it cannot tell.
    pub(crate) fn has_secret(&self, secret: &SecretRef) -> Result<bool> {
        let (action, wanted) = (|| "look up a secret".to_owned(), secret.clone());
        match self.link.call(action, move |connect| ffi::find_secret(connect, &wanted)) {
            Ok(()) => Ok(true),
            Err(error) => match error.meaning() {
                LibvirtErrorKind::NotFound => Ok(false),
                LibvirtErrorKind::Unsupported => Ok(true),
                _ => Err(error),
            },
        }
    }

    fn no_such_machine(&self, name: &str, all: &[Machine]) -> Error {
        let near = similar_names(name, all.iter().map(Machine::name));
        Error::NoSuchMachine { name: name.to_owned(), uri: self.uri().to_owned(), near }
    }
}

/// Keeps libvirt's own log lines ("info : libvirt version …") off stderr unless the user configured an output. Must be
/// called before the process has a second thread, ideally first in `main`. Returns whether it took effect.
pub(crate) fn quiet_libvirt_log() -> bool {
    const OUTPUTS: &str = "LIBVIRT_LOG_OUTPUTS";
    if std::env::var_os(OUTPUTS).is_some() || std::env::var_os("LIBVIRT_DEBUG").is_some() {
        return false;
    }
    ffi::set_env_while_single_threaded(OUTPUTS, "4:file:/dev/null")
}

/// The folders of the system's programs. cron's `PATH` has few of them, and a crontab may set any.
const PROGRAM_FOLDERS: [&str; 6] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// Appends the folders of the system's programs to `PATH`, for this process and its children. Must be called before the
/// process has a second thread. Returns whether it took effect.
pub(crate) fn complete_path() -> bool {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut folders: Vec<&str> = path.split(':').filter(|folder| !folder.is_empty()).collect();
    for folder in PROGRAM_FOLDERS {
        if !folders.contains(&folder) {
            folders.push(folder);
        }
    }
    ffi::set_env_while_single_threaded("PATH", &folders.join(":"))
}

/// The folder in which libvirt keeps firmware variables of machines whose definitions do not set a path.
pub(crate) fn nvram_folder(uri: &str) -> Option<PathBuf> {
    if let Some(root) = embedded_root(uri) {
        return Some(root.join("lib/qemu/nvram"));
    }
    if !uri.ends_with("/session") {
        return Some("/var/lib/libvirt/qemu/nvram".into());
    }
    let configuration = std::env::var_os("XDG_CONFIG_HOME").filter(|folder| !folder.is_empty()).map(PathBuf::from);
    Some(configuration.or_else(|| Some(std::env::home_dir()?.join(".config")))?.join("libvirt/qemu/nvram"))
}

/// The log files of QEMU and swtpm for a machine.
pub(crate) fn log_files(uri: &str, name: &str) -> Vec<PathBuf> {
    let folders = if let Some(root) = embedded_root(uri) {
        Some((root.join("log/qemu"), root.join("log/swtpm")))
    } else if !uri.ends_with("/session") {
        Some(("/var/log/libvirt/qemu".into(), "/var/log/swtpm/libvirt/qemu".into()))
    } else {
        let cache = std::env::var_os("XDG_CACHE_HOME").filter(|folder| !folder.is_empty()).map(PathBuf::from);
        let logs =
            cache.or_else(|| Some(std::env::home_dir()?.join(".cache"))).map(|cache| cache.join("libvirt/qemu/log"));
        logs.map(|logs| (logs.clone(), logs))
    };
    let files = |(qemu, swtpm): (PathBuf, PathBuf)| {
        vec![qemu.join(format!("{name}.log")), swtpm.join(format!("{name}-swtpm.log"))]
    };
    folders.map(files).unwrap_or_default()
}

/// The path of a volume of a storage pool, looked up on the machine's connection.
pub(super) fn volume_path(
    domain: &Domain,
    pool: &str,
    volume: &str,
) -> std::result::Result<PathBuf, virt::error::Error> {
    let pool = domain.connect()?.lookup_storage_pool_by_name(pool)?;
    pool.lookup_storage_vol_by_name(volume)?.path().map(PathBuf::from)
}

fn split_version(version: u32) -> (u32, u32, u32) {
    (version / 1_000_000, version / 1_000 % 1_000, version % 1_000)
}

fn positions(all: &[Machine], wanted: impl Fn(&Machine) -> bool) -> Vec<usize> {
    (0..all.len()).filter(|&at| wanted(&all[at])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libvirt_version_number_is_split() {
        assert_eq!(split_version(11_003_000), (11, 3, 0));
    }
}
