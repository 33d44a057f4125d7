//! Runs `guestfish` on a host without KVM and without its own kernel, such as a container.

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::{Call, guest, parts};

/// Time limit, including its virtual machine, which may be emulated and compete with others.
pub const LIMIT: Duration = Duration::from_secs(800);

/// Adds a kernel for libguestfs to a call.
#[track_caller]
pub fn with_kernel(call: Call) -> Call {
    variables().into_iter().fold(call, |call, (key, value)| call.env(key, value)).limit(LIMIT)
}

/// Returns the variables that tell libguestfs which kernel to use.
#[track_caller]
pub fn variables() -> Vec<(&'static str, String)> {
    parts::require(&["guestfish", "supermin"]);
    // Without this folder, supermin fails after it has copied everything.
    assert!(Path::new("/lib/modules").is_dir(), "/lib/modules is missing; as root run: .ci/install-parts");
    let guest = guest::prepared_parts();
    let modules =
        fs::read_dir(guest.join("modules")).expect("the modules").next().expect("a version").expect("an entry");
    let cache = parts::cache_dir().join("libguestfs");
    fs::create_dir_all(&cache).expect("cannot make a folder");
    vec![
        ("SUPERMIN_KERNEL", guest.join("vmlinuz").display().to_string()),
        ("SUPERMIN_MODULES", modules.path().display().to_string()),
        ("SUPERMIN_KERNEL_VERSION", modules.file_name().to_string_lossy().into_owned()),
        ("LIBGUESTFS_APPEND", "mitigations=off".to_owned()),
        ("LIBGUESTFS_CACHEDIR", cache.display().to_string()),
        ("LIBGUESTFS_BACKEND", "direct".to_owned()),
        ("LIBGUESTFS_BACKEND_SETTINGS", "force_tcg".to_owned()),
    ]
}
