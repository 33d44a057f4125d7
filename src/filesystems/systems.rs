//! The operating systems of a point: which volume is the root of each, and what it mounts where.

use super::format::FilesystemFormat;
use super::lvm::mapper_name;
use super::namespace::{Names, Namespace, Place, display, names_of};
use super::volumes::{VolumeInfo, Volumes};
use super::{FsError, InodeKind, Result};

/// Maximum size of an `os-release` or `fstab`.
const MOST_TEXT_BYTES: u64 = 256 << 10;

/// Btrfs subvolumes that distributions use as their root, in addition to the default one.
const ROOT_SUBVOLUMES: [&[u8]; 3] = [b"@", b"root", b"@rootfs"];

/// The ID of the subvolume that contains all others of a Btrfs.
const TOP_SUBVOLUME: u64 = 5;

#[derive(Debug, Clone)]
pub(crate) struct System {
    /// For example, "Debian GNU/Linux 12 (bookworm)".
    pub(crate) name: String,
    pub(crate) is_windows: bool,
    pub(crate) tree: Namespace,
}

/// Finds all operating systems, and records in the volumes how they use them.
pub(crate) fn find(volumes: &mut Volumes) -> Vec<System> {
    let mut found = Vec::new();
    for volume in volumes.readable() {
        // An unreadable volume is not a system; reading its files will report the reason.
        if let Ok(Some(system)) = linux(volumes, volume) {
            found.push(system);
        } else if let Ok(Some(system)) = windows(volumes, volume) {
            found.push(system);
        }
    }
    for system in &found {
        let about = &mut volumes.0[system.tree.root.volume].about;
        about.system = Some(system.name.clone());
        about.mount_point = Some(if system.is_windows { "C:\\".to_owned() } else { "/".to_owned() });
        for (names, place) in &system.tree.mounts {
            volumes.0[place.volume].about.mount_point.get_or_insert_with(|| display(names));
        }
    }
    found
}

fn windows(volumes: &mut Volumes, volume: usize) -> Result<Option<System>> {
    if volumes.0[volume].about.format != FilesystemFormat::Ntfs {
        return Ok(None);
    }
    let tree = Namespace::of_volume(volumes, volume)?;
    let is_there = tree.resolve(volumes, &names_of(b"Windows/System32/ntoskrnl.exe"), true).is_ok();
    Ok(is_there.then(|| System { name: "Windows".to_owned(), is_windows: true, tree }))
}

fn linux(volumes: &mut Volumes, volume: usize) -> Result<Option<System>> {
    let plain = Namespace::of_volume(volumes, volume)?;
    let mut roots = vec![plain.root];
    if volumes.0[volume].about.format == FilesystemFormat::Btrfs {
        let node = volumes.filesystem(volume)?.subvolume(TOP_SUBVOLUME)?;
        let top = Namespace { root: Place { volume, node }, mounts: Vec::new() };
        for name in ROOT_SUBVOLUMES {
            roots.extend(top.resolve(volumes, &vec![name.to_vec()], false).map(|(_, place)| place));
        }
    }
    for root in roots {
        let mut tree = Namespace { root, mounts: Vec::new() };
        let release = [&b"etc/os-release"[..], b"usr/lib/os-release"]
            .into_iter()
            .find_map(|path| read_text(&tree, volumes, &names_of(path)).ok());
        let Some(release) = release else { continue };
        let fstab = read_text(&tree, volumes, &names_of(b"etc/fstab")).unwrap_or_default();
        for line in fstab.lines() {
            tree.mounts.extend(mount(volumes, line));
        }
        return Ok(Some(System { name: pretty_name(&release), is_windows: false, tree }));
    }
    Ok(None)
}

/// Returns `PRETTY_NAME` or `NAME` of os-release(5).
fn pretty_name(release: &str) -> String {
    let value = |key: &str| {
        let value = release.lines().find_map(|line| line.trim().strip_prefix(key)?.strip_prefix('='))?;
        let value = value.trim().trim_matches(['"', '\'']);
        (!value.is_empty()).then(|| value.chars().take(120).collect::<String>())
    };
    value("PRETTY_NAME").or_else(|| value("NAME")).unwrap_or_else(|| "Linux".to_owned())
}

/// Returns the mount point and the root of a line of fstab(5), if it refers to one of the volumes.
fn mount(volumes: &mut Volumes, line: &str) -> Option<(Names, Place)> {
    let line = line.split('#').next()?;
    let fields: Vec<&str> = line.split_whitespace().collect();
    let [spec, point, _, options, ..] = fields[..] else { return None };
    let names = names_of(unescaped(point).as_bytes());
    if !point.starts_with('/') || names.is_empty() || names.iter().any(|name| name == b"..") {
        return None;
    }
    let volume = volumes.readable().into_iter().find(|volume| is_meant(&volumes.0[*volume].about, spec))?;
    let root = mounted_root(volumes, volume, options).ok()?;
    Some((names, root))
}

/// Returns the directory of a volume that is mounted with these options. `subvol=` is a path from the top of a Btrfs,
/// whatever its default subvolume is.
fn mounted_root(volumes: &mut Volumes, volume: usize, options: &str) -> Result<Place> {
    let mut tree = Namespace::of_volume(volumes, volume)?;
    if volumes.0[volume].about.format != FilesystemFormat::Btrfs {
        return Ok(tree.root);
    }
    let option = |prefix: &str| options.split(',').find_map(|option| option.strip_prefix(prefix));
    if let Some(path) = option("subvol=") {
        tree.root.node = volumes.filesystem(volume)?.subvolume(TOP_SUBVOLUME)?;
        return Ok(tree.resolve(volumes, &names_of(unescaped(path).as_bytes()), false)?.1);
    }
    if let Some(id) = option("subvolid=").and_then(|id| id.parse().ok()) {
        // "0" means the top as well.
        let id = if id == 0 { TOP_SUBVOLUME } else { id };
        tree.root.node = volumes.filesystem(volume)?.subvolume(id)?;
    }
    Ok(tree.root)
}

/// "Spaces and tabs are escaped as \040 and \011".
fn unescaped(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")
}

/// Whether the first field of a line refers to this volume.
fn is_meant(about: &VolumeInfo, spec: &str) -> bool {
    let spec = spec.replace('"', "");
    let same = |known: Option<&str>, wanted: &str| known.is_some_and(|known| known.eq_ignore_ascii_case(wanted));
    for (tag, folder, known) in [
        ("UUID=", "/dev/disk/by-uuid/", about.uuid.as_deref()),
        ("LABEL=", "/dev/disk/by-label/", Some(about.label.as_str()).filter(|label| !label.is_empty())),
        ("PARTUUID=", "/dev/disk/by-partuuid/", about.partition_uuid.as_deref()),
        ("PARTLABEL=", "/dev/disk/by-partlabel/", Some(about.partition_name.as_str()).filter(|name| !name.is_empty())),
    ] {
        if let Some(wanted) = spec.strip_prefix(tag).or_else(|| spec.strip_prefix(folder)) {
            return same(known, wanted);
        }
    }
    let Some(device) = spec.strip_prefix("/dev/") else { return false };
    let names: Vec<&str> = device.split('/').collect();
    let name = match names[..] {
        ["mapper", name] => name.to_owned(),
        [group, volume] => mapper_name(group, volume),
        _ => device.to_owned(),
    };
    if name == about.name {
        return true;
    }
    // A guest may use other names for its disks: sda, vda and xvda all mean the first one.
    let Some(rest) = ["vd", "sd", "hd", "xvd"].into_iter().find_map(|prefix| device.strip_prefix(prefix)) else {
        return false;
    };
    let letter = rest.bytes().next().filter(u8::is_ascii_lowercase).map(|letter| usize::from(letter - b'a'));
    letter.is_some() && letter == about.disk_number && rest[1..].parse().ok() == about.partition
}

fn read_text(tree: &Namespace, volumes: &mut Volumes, names: &Names) -> Result<String> {
    let (_, place) = tree.resolve(volumes, names, true)?;
    let filesystem = volumes.filesystem(place.volume)?;
    let metadata = filesystem.metadata(place.node)?;
    if metadata.kind != InodeKind::File || metadata.size_bytes > MOST_TEXT_BYTES {
        return Err(FsError::BadPath(format!("{} is not a small file", display(names))));
    }
    let mut bytes = vec![0; metadata.size_bytes as usize];
    filesystem.read_at(place.node, 0, &mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Parses a path of the command line. Returns a tree, and the names in it.
///
/// | path | meaning |
/// | --- | --- |
/// | `vda2:/etc/fstab` | on this volume |
/// | `C:\Users\x` | on the volume with Windows |
/// | `/etc/fstab` | in the only operating system, or on the only file system |
pub(crate) fn parse_path(text: &str, volumes: &mut Volumes, systems: &[System]) -> Result<(Namespace, Names)> {
    if let Some((volume, path)) = text.split_once(':') {
        if volume.len() == 1 {
            let windows: Vec<&System> = systems.iter().filter(|system| system.is_windows).collect();
            return match windows[..] {
                [system] if volume.eq_ignore_ascii_case("c") => {
                    Ok((system.tree.clone(), names_of(path.replace('\\', "/").as_bytes())))
                }
                [_] => {
                    Err(FsError::BadPath(format!("drive {volume}: is not known; name its file system: vda2:/Users")))
                }
                [] => Err(FsError::BadPath("no Windows system was found".into())),
                _ => Err(FsError::BadPath("more than one Windows system was found; name its file system".into())),
            };
        }
        if let Some(number) = volumes.0.iter().position(|known| known.about.name == volume) {
            return Ok((Namespace::of_volume(volumes, number)?, names_of(path.as_bytes())));
        }
        if !text.starts_with('/') {
            let names: Vec<&str> = volumes.0.iter().map(|volume| volume.about.name.as_str()).collect();
            return Err(FsError::NotFound {
                path: format!("file system {volume}"),
                near: names.into_iter().map(str::to_owned).collect(),
            });
        }
    }
    if !text.starts_with('/') {
        return Err(FsError::BadPath(
            "it does not begin with '/', and does not name a file system as vda2:/etc does".into(),
        ));
    }
    let readable = volumes.readable();
    let tree = match (systems, &readable[..]) {
        ([system], _) => system.tree.clone(),
        ([], [only]) => Namespace::of_volume(volumes, *only)?,
        _ => {
            let names: Vec<&str> = readable.iter().map(|volume| volumes.0[*volume].about.name.as_str()).collect();
            let found = match systems.len() {
                0 => "no operating system was found",
                _ => "more than one operating system was found",
            };
            let which = match names.first() {
                Some(first) => format!("name a file system ({}): {first}:{text}", names.join(", ")),
                None => "and no file system can be read".to_owned(),
            };
            return Err(FsError::BadPath(format!("{found}; {which}")));
        }
    };
    Ok((tree, names_of(text.as_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about(name: &str, disk_number: usize, partition: u32) -> VolumeInfo {
        VolumeInfo {
            name: name.into(),
            disk: "vda".into(),
            disk_number: Some(disk_number),
            partition: Some(partition),
            partition_name: "root".into(),
            partition_uuid: Some("1234abcd-02".into()),
            offset_bytes: 0,
            size_bytes: 0,
            format: FilesystemFormat::Ext4,
            label: "data".into(),
            uuid: Some("6d1c".into()),
            problem: None,
            system: None,
            mount_point: None,
        }
    }

    #[test]
    fn fstab_sources_match_volumes_in_every_notation() {
        let volume = about("vda2", 0, 2);
        for spec in [
            "UUID=6D1C",
            "UUID=\"6d1c\"",
            "LABEL=data",
            "PARTUUID=1234abcd-02",
            "PARTLABEL=root",
            "/dev/vda2",
            "/dev/sda2",
            "/dev/xvda2",
            "/dev/disk/by-uuid/6d1c",
        ] {
            assert!(is_meant(&volume, spec), "{spec}");
        }
        let logical = VolumeInfo { disk_number: None, partition: None, ..about("my--vg-root", 0, 1) };
        for spec in ["/dev/mapper/my--vg-root", "/dev/my-vg/root"] {
            assert!(is_meant(&logical, spec), "{spec}");
        }
        for spec in ["/dev/my-vg/roots", "/dev/sda", "/dev/mapper/my-vg-root", "/dev/a/b/c"] {
            assert!(!is_meant(&logical, spec), "{spec}");
        }
        for spec in ["UUID=6d1", "LABEL=", "/dev/sdb2", "/dev/sda1", "/dev/sda", "tmpfs", "/dev/mapper/x", "proc"] {
            assert!(!is_meant(&volume, spec), "{spec}");
        }
    }

    #[test]
    fn pretty_name_is_preferred_as_the_system_name() {
        assert_eq!(
            pretty_name("NAME=Debian\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n"),
            "Debian GNU/Linux 12 (bookworm)"
        );
        assert_eq!(pretty_name("NAME='Alpine'\n"), "Alpine");
        assert_eq!(pretty_name(""), "Linux");
    }
}
