//! `make install` and `make deb`: what they install, and that it works there. The packaged program is the one under
//! test: a release build would take minutes and show nothing more.

// A test panics if a result is not what it expects.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::support::{Env, parts};

/// Runs `make` in the source tree with the program under test.
fn make(env: &Env, target: &str, variables: &[String]) {
    let program = format!("KVMB={}", env!("CARGO_BIN_EXE_kvmb"));
    let call = env.program("make").args(["-s", "-C", env!("CARGO_MANIFEST_DIR"), target, &program]).args(variables);
    call.run().assert_ok();
}

/// Returns every file below a folder, with relative paths.
fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut open = vec![folder.to_owned()];
    let mut files = Vec::new();
    while let Some(next) = open.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => open.push(path),
                false => files.push(path.strip_prefix(folder).unwrap().to_owned()),
            }
        }
    }
    files.sort();
    files
}

const INSTALLED: [&str; 6] = [
    "bin/kvmb",
    "share/man/man1/kvmb.1",
    "share/man/man1/kvmb-key-export.1",
    "share/bash-completion/completions/kvmb",
    "share/zsh/site-functions/_kvmb",
    "share/fish/vendor_completions.d/kvmb.fish",
];

#[test]
fn make_install_writes_only_below_destdir_and_prefix() {
    parts::require(&["make"]);
    let env = Env::new("install");
    let root = env.path("root");
    for prefix in ["/usr/local", "/opt/kvmb"] {
        make(&env, "install", &[format!("DESTDIR={}", root.display()), format!("PREFIX={prefix}")]);
        let base = root.join(&prefix[1..]);
        for file in INSTALLED {
            let path = base.join(file);
            let mode = fs::metadata(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).permissions();
            assert_eq!(mode.mode() & 0o777, if file.starts_with("bin/") { 0o755 } else { 0o644 }, "{file}");
        }
        // A second run changes nothing.
        let files = files_below(&root);
        make(&env, "install", &[format!("DESTDIR={}", root.display()), format!("PREFIX={prefix}")]);
        assert_eq!(files_below(&root), files);
        assert!(files_below(&base).iter().all(|file| file.starts_with("bin") || file.starts_with("share")));
        env.program(base.join("bin/kvmb")).arg("--version").run().assert_ok();
        fs::remove_dir_all(&root).unwrap();
    }
}

/// Creates a minimal system of the running distribution with apt in the folder `$1`, from this host's apt mirror;
/// installs the package `$2` in it with apt; inspects it from inside, with the script `$3`; and removes the package
/// with apt.
const CLEAN_SYSTEM: &str = r#"
    . /etc/os-release
    mirror=$(apt-get indextargets --format '$(REPO_URI) $(CODENAME) $(COMPONENT)' 'Created-By: Packages' |
        sed -n "s/ $VERSION_CODENAME main\$//p" | head -n 1)
    [ -n "$mirror" ] || { echo "apt knows no mirror of $VERSION_CODENAME: run apt-get update" >&2; exit 1; }
    mmdebstrap --quiet --mode=root --variant=apt "$VERSION_CODENAME" "$1" "$mirror" \
        --skip=cleanup/apt --skip=output/dev --aptopt='Acquire::Languages "none"' --dpkgopt=force-unsafe-io ||
        { echo "no clean $VERSION_CODENAME can be had from $mirror: is there a network?" >&2; exit 1; }
    cp "$2" "$1/kvmb.deb"
    for folder in proc sys dev; do mount --rbind "/$folder" "$1/$folder"; done
    inside() { chroot "$1" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive sh -ec "$2"; }
    # As the version before: the same files, an older number.
    dpkg-deb -R "$2" "$1/older"
    sed -i 's/^Version: .*/Version: 0.1.0-1/' "$1/older/DEBIAN/control"
    dpkg-deb --root-owner-group -Znone -b "$1/older" "$1/older.deb" >/dev/null
    inside "$1" 'apt-get install -q -y --no-install-recommends /older.deb' || exit 1
    inside "$1" 'mkdir -p /etc/kvmb /var/lib/kvmb/repo; echo kept | tee /etc/kvmb/config.json >/var/lib/kvmb/repo/config'
    inside "$1" 'apt-get install -q -y --no-install-recommends /kvmb.deb' || exit 1
    inside "$1" "$3" || exit 1
    inside "$1" 'apt-get purge -q -y kvmb'"#;

#[test]
fn debian_package_passes_lintian_and_installs_on_a_clean_system() {
    parts::require(&[
        "make",
        "dpkg-deb",
        "dpkg-shlibdeps",
        "lintian",
        "strip",
        "mmdebstrap",
        "unshare",
        "chroot",
        "readelf",
    ]);
    let env = Env::new("deb");
    let folder = env.path("deb");
    // The best compression takes long and is not tested here.
    let build = env
        .program("make")
        .args(["-s", "-C", env!("CARGO_MANIFEST_DIR"), "deb"])
        .arg(format!("KVMB={}", env!("CARGO_BIN_EXE_kvmb")))
        .arg(format!("DEB_DIR={}", folder.display()))
        .env("DPKG_DEB_COMPRESSOR_TYPE", "xz")
        .env("DPKG_DEB_COMPRESSOR_LEVEL", "0");
    build.run().assert_ok();
    let package = folder.join(&files_below(&folder)[0]);
    let package = package.to_str().unwrap();
    let lintian = env.program("lintian").args(["--allow-root", "--fail-on", "error,warning"]).args(SUPPRESSED);
    let lintian = lintian.arg(package).limit(LIMIT).spawn();

    let system = env.tmpfs("system", 2 << 30);
    let root = system.path().join("root");
    let run = env
        .program("unshare")
        .args(["--mount", "--pid", "--fork", "--kill-child", "sh", "-ec", CLEAN_SYSTEM, "clean-system"])
        .arg(&root)
        .args([package, "kvmb --version; qemu-img --version | head -n 1; dpkg --verify kvmb; dpkg -L kvmb"])
        .limit(LIMIT)
        .run()
        .assert_ok();
    assert!(run.stdout().contains(&format!("\nkvmb {}\nqemu-img version ", env!("CARGO_PKG_VERSION"))), "{run}");
    for file in INSTALLED {
        let suffix = if file.contains("/man1/") { ".gz" } else { "" };
        assert!(run.stdout().lines().any(|line| line == format!("/usr/{file}{suffix}")), "{file}: {run}");
    }
    for page in ["README.md", "SECURITY.md", "docs/guide.fr.md", "docs/images/console-overview.png"] {
        assert!(run.stdout().contains(&format!("\n/usr/share/doc/kvmb/{page}\n")), "{page}: {run}");
    }
    // It replaced the older version. After its removal, its dependencies, backups and settings are still there.
    assert!(run.stdout().contains("over (0.1.0-1)"), "{run}");
    assert!(root.join("usr/bin/qemu-img").exists() && !root.join("usr/bin/kvmb").exists());
    for file in ["etc/kvmb/config.json", "var/lib/kvmb/repo/config"] {
        assert_eq!(fs::read_to_string(root.join(file)).unwrap(), "kept\n", "{file}");
    }
    lintian.wait().assert_ok();

    // It depends on its libraries and on the programs that it starts.
    let field = |name: &str| env.program("dpkg-deb").args(["-f", package, name]).run().assert_ok().stdout().to_owned();
    let depends = field("Depends");
    for needed in ["libc6 (>=", "libvirt0 (>=", "qemu-utils"] {
        assert!(depends.contains(needed), "{depends}");
    }
    assert!(field("Version").starts_with(env!("CARGO_PKG_VERSION")));
    assert!(
        field("Recommends").contains("openssh-client")
            && ["guestfish", "guestmount", "restic"].iter().all(|part| field("Suggests").contains(part))
    );

    // The program is stripped and hardened: its address is randomised, its tables are read-only, and its stack is not
    // executable.
    env.program("dpkg-deb").args(["-x", package, "packed"]).run().assert_ok();
    let program = "packed/usr/bin/kvmb";
    let elf = env.program("readelf").args(["-hldSW", program]).run().assert_ok();
    for words in ["DYN (Position-Independent Executable file)", "BIND_NOW", "GNU_RELRO"] {
        assert!(elf.stdout().contains(words), "{words}: {elf}");
    }
    let stack = elf.stdout().lines().find(|line| line.contains("GNU_STACK")).expect("GNU_STACK");
    assert!(!stack.contains("RWE"), "{stack}");
    assert!(![".symtab", ".debug_line"].iter().any(|section| elf.stdout().contains(section)), "{elf}");
}

/// A mirror may be far away, and this host may be busy.
const LIMIT: Duration = Duration::from_secs(280);

/// There is no Debian bug that requests kvmb.
const SUPPRESSED: [&str; 2] = ["--suppress-tags", "initial-upload-closes-no-bugs"];
