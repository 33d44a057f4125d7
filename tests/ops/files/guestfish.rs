//! Volumes that kvmb itself cannot read: LUKS, RAID and thin volumes, opened by `guestfish` in a virtual machine.

use std::path::Path;

use crate::files::{assert_same, backed_up, files, sh, tree};
use crate::support::backups::{new_folder, text};
use crate::support::guestfish::{LIMIT, variables, with_kernel};
use crate::support::{Call, Env, parts, process, wait_until};

const PASSPHRASE: &str = "correct horse";

/// Returns a `kvmb files` command that may start `guestfish`.
fn opened(env: &Env, args: &[&str]) -> Call {
    with_kernel(env.kvmb(["files", args[0], "-r", &env.repo(), "vm1"]).args(&args[1..]))
}

/// Creates a file with a passphrase, and returns the value of `--luks-key-file` for a volume.
fn key_file(env: &Env, volume: &str, passphrase: &str) -> String {
    let path = env.path(format!("{volume}.key"));
    std::fs::write(&path, format!("{passphrase}\n")).expect("write");
    crate::support::set_mode(&path, 0o600);
    format!("{volume}={}", path.display())
}

/// Creates the image `disk` with one LUKS partition that contains the image `plain`.
fn encrypt(env: &Env, plain: &str, disk: &str) {
    parts::require(&["sfdisk"]);
    let script = format!(
        "qemu-img convert -f raw -O luks --object secret,id=key,data='{PASSPHRASE}' -o key-secret=key,iter-time=10 \
             {plain} {plain}.luks
         truncate -s $(($(stat -c %s {plain}.luks) + (2 << 20))) {disk}
         echo 2048,,83 | sfdisk -q {disk}; dd if={plain}.luks of={disk} bs=1M seek=1 conv=notrunc status=none"
    );
    sh(env, &script);
}

/// Creates the images `part1` and `part2`, a mirror named `data` that contains the image `mirrored`; `pool`, a volume
/// group with a thin volume that contains the image `thin`; and `lvm`, one with the volume `root` for that image.
fn assemble(env: &Env) {
    sh(env, "truncate -s 48M part1 part2; truncate -s 96M pool; truncate -s 64M lvm");
    let commands = "run
        md-create data \"/dev/sda /dev/sdb\" level:raid1
        copy-device-to-device /dev/sde /dev/md/data sparse:true
        pvcreate /dev/sdc
        vgcreate pool /dev/sdc
        debug sh \"lvcreate -y -T -L 48M -V 24M -n thin pool/thins\"
        copy-device-to-device /dev/sdf /dev/pool/thin sparse:true
        pvcreate /dev/sdd
        vgcreate my-vg /dev/sdd
        lvcreate root my-vg 40
        copy-device-to-device /dev/sdg /dev/my-vg/root sparse:true
        list-filesystems
        vg-activate-all false";
    let call = with_kernel(env.sh("cd \"$0\"; exec guestfish --format=raw -a part1 -a part2 -a pool -a lvm \
        -a mirrored -a thin -a root"));
    let output = call.arg(env.path("")).stdin(commands).run().assert_ok();
    assert!(output.stdout().contains("/dev/pool/thin: ext4"), "{output}");
}

#[test]
fn system_on_luks_raid_and_thin_volumes_is_copied_unchanged() {
    let env = Env::new("filesluks");
    let source = tree(&env, "tree");
    let script = "mkdir tree/srv data inside thin.d
        echo '/dev/my-vg/root / ext4 defaults 0 1' > tree/etc/fstab
        echo '/dev/md/data /srv ext4 defaults 0 2' >> tree/etc/fstab
        head -c 5000001 /dev/urandom > data/big; truncate -s 3M data/holes; ln -s big data/link
        setfattr -n user.note -v value data/big; chown 1000:1001 data/big; chmod 4750 data/big
        cp -a data/big thin.d/small; truncate -s 1000001 thin.d/small; cp -a thin.d inside/inside
        find tree/etc/fstab tree/srv data thin.d inside -exec touch -h -d '2001-02-03 04:05:06' {} +
        mkfs.ext4 -q -d tree root 40M; mkfs.ext4 -q -d data mirrored 32M; mkfs.ext4 -q -d inside thin 16M";
    sh(&env, script);
    assemble(&env);
    encrypt(&env, "lvm", "disk");
    // The expected result: the system's tree including the mirror, and the folder of the thin volume beside it.
    sh(&env, "cp -a data/. tree/srv/; mkdir -m 0700 tree/srv/lost+found; cp -a inside/inside tree/");
    backed_up(
        &env,
        &["disk", "part1", "part2", "pool"].map(|name| env.path(name)).each_ref().map(AsRef::<Path>::as_ref),
    );
    let copied = new_folder(&env, "copied");
    let key = key_file(&env, "vda1", PASSPHRASE);
    let to = copied.display().to_string();
    let paths = ["cp", "/", "pool-thin:/inside", "--devices", "--to", &to, "--luks-key-file", &key];
    opened(&env, &paths).run().assert_ok();
    assert_same(&env, &source, &copied);
    env.assert_nothing_left();
}

/// The passphrase is part of a command in the virtual machine, so it has no spaces.
const LUKS2_PASSPHRASE: &str = "correct-horse";

/// Creates the image `disk` with LUKS2 that contains the image `plain`, and the image `large` with LUKS2 whose key
/// derivation needs 256 MiB. That takes half a minute on an emulated processor, so it is never opened successfully, and
/// its header is written by this host.
fn encrypt_luks2(env: &Env) {
    parts::require(&["cryptsetup"]);
    let format = |image: &str, key_mib: u32| {
        format!(
            "cryptsetup luksFormat -q --type luks2 --pbkdf argon2id --pbkdf-memory {} --pbkdf-force-iterations 4 \
             {image} key",
            key_mib << 10
        )
    };
    let (disk, large) = (format("disk", 1), format("large", 256));
    sh(env, &format!("truncate -s 48M disk; truncate -s 20M large; printf {LUKS2_PASSPHRASE} > key; {disk}; {large}"));
    let commands = format!(
        "add-drive disk format:raw label:disk
        run
        debug sh \"printf {LUKS2_PASSPHRASE} > /tmp/key\"
        debug sh \"cryptsetup open --key-file /tmp/key /dev/disk/guestfs/disk plain\"
        upload plain /dev/mapper/plain
        debug sh \"cryptsetup close plain\"
        "
    );
    let call = with_kernel(env.sh("cd \"$0\"; exec guestfish"));
    call.arg(env.path("")).stdin(&commands).run().assert_ok();
}

#[test]
fn luks2_opens_unless_its_key_needs_too_much_memory() {
    let env = Env::new("filesluks2");
    sh(&env, "mkdir tree; echo content > tree/file; mkfs.ext4 -q -d tree plain 16M");
    encrypt_luks2(&env);
    backed_up(&env, &["disk", "large"].map(|name| env.path(name)).each_ref().map(AsRef::<Path>::as_ref));
    let key = key_file(&env, "vda", LUKS2_PASSPHRASE);
    let printed = opened(&env, &["cat", "vda_crypt:/file", "--luks-key-file", &key]).run().assert_ok();
    assert_eq!(printed.stdout(), "content\n");
    let wrong = key_file(&env, "vda", "wrong");
    let failure = opened(&env, &["ls", "--luks-key-file", &wrong]).run().assert_code(1).record_of("failure");
    assert_eq!(failure["code"], "wrong_password", "{failure}");
    assert!(text(&failure, "error").starts_with("the passphrase does not open vda: "), "{failure}");
    // The passphrase is correct, so the error must not say that it is wrong.
    let key = key_file(&env, "vdb", LUKS2_PASSPHRASE);
    let call = opened(&env, &["ls", "--luks-key-file", &key]).env("LIBGUESTFS_MEMSIZE", "320");
    let failure = call.run().assert_code(1).record_of("failure");
    assert!(text(&failure, "error").contains("too little memory to open vdb: "), "{failure}");
    assert!(text(&failure, "hint").contains("LIBGUESTFS_MEMSIZE=4096"), "{failure}");
    env.assert_nothing_left();
}

#[test]
fn luks_volume_is_opened_only_on_request_and_cleaned_up() {
    let env = Env::new("fileslukskey");
    sh(&env, "mkdir tree; echo content > tree/file; mkfs.ext4 -q -d tree plain 16M");
    encrypt(&env, "plain", "disk");
    backed_up(&env, &[&env.path("disk")]);
    // Without the option, no virtual machine is started.
    let listed = files(&env, &["ls"]).assert_ok().record_of("filesystem");
    assert_eq!((&listed["filesystem"], &listed["format"]), (&"vda1".into(), &"crypto_LUKS".into()));
    assert_eq!(listed["readable"], false);
    let refused = files(&env, &["cat", "vda1:/file"]).assert_code(1);
    assert!(refused.stderr().contains("--guestfish"), "{refused}");
    let missing = env.kvmb_without(&["guestfish"], ["files", "ls", "-r", &env.repo(), "vm1", "--guestfish"]).run();
    let missing = missing.assert_code(1);
    assert!(missing.stderr().contains("apt-get install guestfish"), "{missing}");

    // If killed, all of its processes end.
    let key = key_file(&env, "vda1", PASSPHRASE);
    let running = opened(&env, &["ls", "--luks-key-file", &key]).spawn();
    let machines = || process::of(&env.path("")).into_iter().filter(|process| process.is("qemu-system-x86_64")).count();
    wait_until("the machine starts", LIMIT, || machines() > 0);
    running.kill();
    running.wait();
    wait_until("the machine has ended", LIMIT, || process::of(&env.path("")).is_empty());

    // On a terminal it asks for the passphrase, before it starts the virtual machine.
    let variables = variables().into_iter().map(|(key, value)| format!("{key}={value}"));
    let kvmb = env.path("bin/kvmb").display().to_string();
    let words = [&kvmb, "files", "ls", "-r", &env.repo(), "vm1", "--guestfish"].map(str::to_owned);
    let mut terminal = env.pty_of("env", variables.chain(words));
    terminal.expect_hidden("Passphrase of vda1", 1);
    terminal.send(&format!("{PASSPHRASE}\n"));
    let screen = terminal.wait_within(LIMIT).assert_ok();
    let line = screen.stdout().lines().find(|line| line.contains("vda1_crypt")).expect("the opened volume");
    assert!(line.contains("ext4"), "{screen}");
    // Including the socket of the killed one.
    env.assert_nothing_left();
}
