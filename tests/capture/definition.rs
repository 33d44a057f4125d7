//! Reading and rewriting definitions: every kind of disk, hostile documents, and properties that hold for all of them.

// A test panics if a result is not what it expects.

use std::path::PathBuf;

use kvmb::capture::domain_xml::definition::{Definition, DefinitionError, Device, DiskSource};
use kvmb::capture::domain_xml::rewrite::{Changes, NewDisk, NewDiskKind, rewrite, rewrite_with_notes};
use proptest::prelude::*;

/// The definition of a running machine with one disk of every kind.
const LIVE: &str = r#"<!-- kept -->
<domain type='kvm' id='7' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>web &amp; db</name>
  <uuid>52e8dc38-9c15-45ff-84fc-563d001b34c9</uuid>
  <genid>11111111-2222-3333-4444-555555555555</genid>
  <title>The web server</title>
  <metadata><app:x xmlns:app="http://example.org/app"><app:y/></app:x></metadata>
  <memory unit='GiB'>2</memory>
  <vcpu placement='static' current='1'>4</vcpu>
  <sysinfo type='smbios'><system><entry name='uuid'>52e8dc38-9c15-45ff-84fc-563d001b34c9</entry></system></sysinfo>
  <os>
    <type arch='x86_64' machine='pc-q35-10.0'>hvm</type>
    <loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE_4M.fd</loader>
    <nvram template='/usr/share/OVMF/OVMF_VARS_4M.fd' format='qcow2'>/var/lib/libvirt/qemu/nvram/web_VARS.fd</nvram>
    <kernel>/boot/vmlinuz</kernel>
    <initrd>/boot/initrd.img</initrd>
  </os>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' discard='unmap' discard_no_unref='on'>
        <metadata_cache><max_size unit='bytes'>1024</max_size></metadata_cache>
      </driver>
      <source file='/images/a.qcow2' index='3'>
        <seclabel model='dac' relabel='no'/>
      </source>
      <backingStore type='file' index='4'>
        <format type='qcow2'/>
        <source file='/images/base.qcow2'/>
        <backingStore type='block' index='5'>
          <format type='raw'/>
          <source dev='/dev/vg/base'/>
          <backingStore/>
        </backingStore>
      </backingStore>
      <target dev='vda' bus='virtio'/>
      <serial>S-1</serial>
      <alias name='virtio-disk0'/>
    </disk>
    <disk type='block' device='disk'><driver name='qemu' type='raw'/><source dev='/dev/vg/b'/><target dev='vdb'/></disk>
    <disk type='network' device='disk'>
      <driver name='qemu' type='raw'/>
      <auth username='admin'><secret type='ceph' usage='x'/></auth>
      <source protocol='rbd' name='pool/image'><host name='mon1' port='6789'/><host name='mon2'/></source>
      <target dev='vdc' bus='virtio'/>
    </disk>
    <disk type='network' device='disk'>
      <source protocol='nbd' name='e' tls='yes'><host transport='unix' socket='/run/nbd'/></source><target dev='vdd'/>
    </disk>
    <disk type='volume' device='disk'><driver type='qcow2'/><source pool='default' volume='v.qcow2'/><target dev='vde'/></disk>
    <disk type='nvme' device='disk'><source type='pci' managed='yes' namespace='1'><address domain='0x0000' bus='0x01' slot='0x00' function='0x0'/></source><target dev='vdf'/></disk>
    <disk type='vhostuser' device='disk'><source type='unix' path='/run/vhost.sock'/><target dev='vdg'/></disk>
    <disk type='dir' device='disk'><driver type='fat'/><source dir='/srv/fat'/><target dev='vdh'/></disk>
    <disk type='file' device='disk'><driver type='qcow2'/><source file='/images/l.qcow2'><encryption format='luks'><secret type='passphrase' uuid='x'/></encryption></source><target dev='vdi'/></disk>
    <disk type='file' device='disk'><driver type='qcow2'/><source file='/images/d.qcow2'><dataStore type='file'><format type='raw'/><source file='/images/d.raw'/></dataStore></source><target dev='vdj'/></disk>
    <disk type='file' device='disk'><source file='/images/t.img'/><target dev='vdk'/><transient/></disk>
    <disk type='file' device='disk'><source file='/images/s.img'/><target dev='vdl'/><shareable/></disk>
    <disk type='file' device='disk'><source file='/images/r.img'/><target dev='vdm'/><readonly/></disk>
    <disk type='newkind' device='disk'><target dev='vdn'/></disk>
    <disk device='cdrom'><target dev='sda' bus='sata'/><readonly/><alias name='ua-mine'/></disk>
    <disk device='floppy'><target dev='fda' bus='fdc'/></disk>
    <disk type='block' device='lun'><source dev='/dev/sdx'/><target dev='sdb' bus='scsi'/></disk>
    <interface type='network'>
      <mac address='52:54:00:00:00:01'/>
      <source network='default' portid='abc' bridge='virbr0'/>
      <target dev='vnet3'/>
      <model type='virtio'/>
      <alias name='net0'/>
    </interface>
    <console type='pty' tty='/dev/pts/0'><source path='/dev/pts/0'/><target type='serial' port='0'/></console>
    <channel type='unix'>
      <source mode='bind' path='/run/libvirt/qemu/channel/7-web/org.qemu.guest_agent.0'/>
      <target type='virtio' name='org.qemu.guest_agent.0' state='connected'/>
    </channel>
    <graphics type='vnc' port='5900' autoport='yes'><listen type='address' address='127.0.0.1'/></graphics>
    <tpm model='tpm-crb'><backend type='emulator' version='2.0'><source type='dir' path='/tpm/state'/></backend></tpm>
  </devices>
  <seclabel type='dynamic' model='dac' relabel='yes'><label>+64055:+993</label><imagelabel>+64055:+993</imagelabel></seclabel>
  <seclabel type='static' model='apparmor' relabel='yes'><label>libvirt-x</label><imagelabel>libvirt-x</imagelabel></seclabel>
  <qemu:commandline><qemu:arg value='-x &lt;'/></qemu:commandline>
</domain>
"#;

#[test]
fn parse_reads_every_disk_type_and_exclusion_reason() {
    let definition = Definition::parse(LIVE).unwrap();
    assert_eq!(definition.name, "web & db");
    assert_eq!(definition.title.as_deref(), Some("The web server"));
    assert_eq!(definition.memory_bytes, 2 << 30);
    assert_eq!(definition.vcpus, 4);
    assert!(definition.has_agent_channel && definition.agent_connected);
    assert_eq!(definition.dac_owner, Some((64055, 993)));
    assert_eq!(definition.seclabel_models, ["dac", "apparmor"]);
    let nvram = definition.nvram.as_ref().unwrap();
    assert_eq!(nvram.path(), Some("/var/lib/libvirt/qemu/nvram/web_VARS.fd".as_ref()));
    assert_eq!(nvram.format.as_deref(), Some("qcow2"));
    let tpm = definition.tpm.as_ref().unwrap();
    assert_eq!((tpm.backend.as_str(), tpm.version.as_deref()), ("emulator", Some("2.0")));
    assert_eq!(tpm.state_path, Some("/tpm/state".into()));

    let vda = definition.disk("vda").unwrap();
    assert_eq!(vda.backing.len(), 2);
    assert_eq!(vda.backing[1].source, DiskSource::Block { path: "/dev/vg/base".into() });
    assert_eq!(vda.serial.as_deref(), Some("S-1"));
    let DiskSource::Network { protocol, hosts, options, .. } = &definition.disk("vdc").unwrap().source else {
        panic!("vdc is a network disk");
    };
    assert_eq!((protocol.as_str(), hosts.len(), options.auth.is_some()), ("rbd", 2, true));
    assert!(matches!(definition.disk("vdd").unwrap().source, DiskSource::Network { tls: true, .. }));
    assert_eq!(definition.disk("vdi").unwrap().encryption.as_ref().map(|found| found.format.as_str()), Some("luks"));
    assert!(definition.disk("vdj").unwrap().data_file.is_some());
    assert!(definition.disk("vdj").unwrap().keeps_bitmaps());
    assert_eq!(definition.disk("sdb").unwrap().device, Device::Lun);

    let included: Vec<&str> =
        definition.disks.iter().filter(|disk| disk.exclusion().is_none()).map(|disk| disk.target.as_str()).collect();
    assert_eq!(included, ["vda", "vdb", "vdc", "vdd", "vde", "vdi", "vdj"]);
    let reason = |target| definition.disk(target).and_then(|disk| disk.exclusion()).unwrap();
    assert_eq!(reason("vdk"), "transient");
    assert_eq!(reason("vdl"), "shared with other machines");
    assert_eq!(reason("vdm"), "read-only");
    assert_eq!(reason("sda"), "cdrom");
    assert_eq!(reason("fda"), "floppy");
    assert_eq!(reason("sdb"), "passed-through device");
}

#[test]
fn rewrite_without_changes_drops_only_runtime_state() {
    let rewritten = rewrite(LIVE, &Changes::default()).unwrap();
    for gone in [
        "id='7'",
        "virtio-disk0",
        "net0",
        "index=",
        "vnet3",
        "portid",
        "virbr0",
        "tty=",
        "/dev/pts",
        "state='connected'",
        "channel/7-web",
        "5900",
        "64055",
        "imagelabel",
    ] {
        assert!(!rewritten.contains(gone), "{gone} is still there:\n{rewritten}");
    }
    for kept in [
        "<!-- kept -->",
        "web &amp; db",
        "<app:y/>",
        "ua-mine",
        "source network='default'",
        "<label>libvirt-x</label>",
        "value='-x &lt;'",
        "<max_size unit='bytes'>1024</max_size>",
        "/images/base.qcow2",
        "52:54:00:00:00:01",
        "<seclabel model='dac' relabel='no'/>",
        "autoport='yes'",
        "11111111-2222",
    ] {
        assert!(rewritten.contains(kept), "{kept} is gone:\n{rewritten}");
    }
    // An inactive definition stays identical.
    assert_eq!(rewrite(&rewritten, &Changes::default()).unwrap(), rewritten);
}

#[test]
fn copy_gets_a_new_identity_and_its_own_file_paths() {
    let changes = Changes {
        name: Some("copy <1>".into()),
        uuid: Some("00000000-1111-2222-3333-444444444444".into()),
        new_macs: true,
        nvram: Some("/n/'v'.fd".into()),
        kernel: Some("/n/k & k".into()),
        initrd: Some("/n/i".into()),
        tpm_state: Some("/n/tpm".into()),
        ..Changes::default()
    };
    let rewritten = rewrite(LIVE, &changes).unwrap();
    let definition = Definition::parse(&rewritten).unwrap();
    assert_eq!(definition.name, "copy <1>");
    assert_eq!(definition.uuid, changes.uuid);
    assert!(!rewritten.contains("52e8dc38"), "SMBIOS has the old UUID");
    assert!(!rewritten.contains("11111111-2222"), "the generation id is the old one");
    assert!(!rewritten.contains("52:54:00:00:00:01"));
    assert!(rewritten.contains("<mac address='52:54:00:"));
    let nvram = definition.nvram.unwrap();
    assert_eq!(nvram.path(), changes.nvram.as_deref());
    assert_eq!(nvram.format.as_deref(), Some("qcow2"));
    assert_eq!(nvram.template, Some("/usr/share/OVMF/OVMF_VARS_4M.fd".into()));
    assert_eq!(definition.kernel, changes.kernel);
    assert_eq!(definition.initrd, changes.initrd);
    assert_eq!(definition.tpm.unwrap().state_path, changes.tpm_state);
}

#[test]
fn copy_without_a_disk_of_a_controller_names_its_type() {
    let xml = "<domain type='qemu'><name>vm1</name><devices><disk type='nvme' device='disk'>\
               <source type='pci' managed='yes' namespace='1'>\
               <address domain='0x0000' bus='0x01' slot='0x00' function='0x0'/></source>\
               <target dev='vdc' bus='virtio'/></disk></devices></domain>";
    let changes = Changes { name: Some("copy".into()), own_resources: true, ..Changes::default() };
    let notes = rewrite_with_notes(xml, &changes).unwrap().notes;
    assert_eq!(notes, ["the copy does not have disk vdc (nvme), which belongs to the original"]);
}

#[test]
fn every_disk_type_is_rewritten_to_a_flat_image() {
    let definition = Definition::parse(LIVE).unwrap();
    for disk in &definition.disks {
        for kind in [NewDiskKind::File, NewDiskKind::Block] {
            let new = NewDisk { path: "/new/disk".into(), kind, format: "raw".into() };
            let changes = Changes { disks: [(disk.target.clone(), new)].into(), ..Changes::default() };
            let rewritten = rewrite(LIVE, &changes).unwrap();
            let now = Definition::parse(&rewritten).unwrap();
            let changed = now.disk(&disk.target).unwrap();
            let path = PathBuf::from("/new/disk");
            let expected = match kind {
                NewDiskKind::File => DiskSource::File { path },
                NewDiskKind::Block => DiskSource::Block { path },
            };
            assert_eq!(changed.source, expected, "{}", disk.target);
            assert_eq!(changed.format.as_deref(), Some("raw"));
            assert!(changed.backing.is_empty() && changed.data_file.is_none());
            assert_eq!(changed.encryption, None);
            assert_eq!((changed.device, &changed.bus, &changed.serial), (disk.device, &disk.bus, &disk.serial));
            for other in definition.disks.iter().filter(|other| other.target != disk.target) {
                assert_eq!(now.disk(&other.target).unwrap().source, other.source);
            }
            if disk.target == "vda" {
                assert!(!rewritten.contains("discard_no_unref"));
                assert!(!rewritten.contains("metadata_cache"));
                assert!(rewritten.contains("discard='unmap'"));
            }
        }
        let changes = Changes { drop_disks: [disk.target.clone()].into(), ..Changes::default() };
        let now = Definition::parse(&rewrite(LIVE, &changes).unwrap()).unwrap();
        assert!(now.disk(&disk.target).is_none());
        assert_eq!(now.disks.len(), definition.disks.len() - 1);
    }
}

#[test]
fn dropping_an_unknown_disk_is_refused() {
    let changes = Changes { drop_disks: ["vdz".to_owned()].into(), ..Changes::default() };
    assert_eq!(rewrite(LIVE, &changes), Err(DefinitionError::NoSuchDisk("vdz".into())));
}

#[test]
fn hostile_documents_are_refused() {
    let bomb = "<!DOCTYPE d [<!ENTITY a 'x'><!ENTITY b '&a;&a;'>]><domain><name>&b;</name></domain>";
    assert!(matches!(Definition::parse(bomb), Err(DefinitionError::Xml(_))));
    let file = "<!DOCTYPE d SYSTEM 'file:///etc/passwd'><domain><name>x</name></domain>";
    assert!(Definition::parse(file).is_err());
    let deep = format!("<domain>{}{}</domain>", "<a>".repeat(100_000), "</a>".repeat(100_000));
    assert!(matches!(Definition::parse(&deep), Err(DefinitionError::Absurd(_))));
    // Attempts to make the nesting look flat.
    for trick in ["<a b='/>'>", "<a b=\"</a>\">", "<a><!-- </a> -->", "<a><![CDATA[</a>]]>", "<a><?x </a>?>"] {
        let deep = format!("<domain>{}", trick.repeat(100_000));
        assert!(matches!(Definition::parse(&deep), Err(DefinitionError::Absurd(_))), "{trick}");
    }
    let huge = " ".repeat(17 << 20);
    assert!(matches!(Definition::parse(&huge), Err(DefinitionError::Absurd(_))));
    assert!(matches!(Definition::parse("<network/>"), Err(DefinitionError::NotADomain(_))));
    assert!(matches!(Definition::parse("<domain/>"), Err(DefinitionError::Missing("name"))));
    let disk = |target: &str| format!("<disk><target dev='{target}'/></disk>");
    let domain = |disks: &str| format!("<domain><name>x</name><devices>{disks}</devices></domain>");
    for target in ["../x", "a/b", "", ".", "-x", "a b", "vda\u{e4}", "x'y", &"v".repeat(33)] {
        let xml = domain(&disk(&target.replace('\'', "&apos;")));
        assert!(Definition::parse(&xml).is_err(), "{target}");
    }
    let twice = domain(&(disk("vda") + &disk("vda")));
    assert_eq!(Definition::parse(&twice), Err(DefinitionError::DuplicateTarget("vda".into())));
    let memory = "<domain><name>x</name><memory unit='TiB'>18446744073709551615</memory></domain>";
    assert!(matches!(Definition::parse(memory), Err(DefinitionError::BadValue { .. })));
}

#[test]
fn truncated_definitions_are_refused() {
    let end = LIVE.trim_end().len();
    for length in (0..end).filter(|&length| LIVE.is_char_boundary(length)) {
        assert!(Definition::parse(&LIVE[..length]).is_err(), "{length}");
    }
}

proptest! {
    #[test]
    fn names_and_paths_survive_rewrite_and_parse(
        name in "[^\\p{Cc}\\s]([^\\p{Cc}]{0,40}[^\\p{Cc}\\s])?",
        path in "/[^\\p{Cc}\u{0}]{0,60}",
        mac in any::<bool>(),
    ) {
        prop_assume!(!name.contains(['\u{fffe}', '\u{ffff}']) && !path.contains(['\u{fffe}', '\u{ffff}']));
        let changes = Changes {
            name: Some(name.clone()),
            new_macs: mac,
            disks: [("vda".to_owned(), NewDisk { path: path.clone().into(), kind: NewDiskKind::File,
                format: "qcow2".into() })].into(),
            ..Changes::default()
        };
        let definition = Definition::parse(&rewrite(LIVE, &changes).unwrap()).unwrap();
        prop_assert_eq!(&definition.name, &name);
        prop_assert_eq!(definition.disk("vda").unwrap().path(), Some(&PathBuf::from(path)));
    }

    #[test]
    fn damaged_definitions_never_panic(at in 0..LIVE.len(), bytes in proptest::collection::vec(any::<u8>(), 0..12)) {
        let mut damaged = LIVE.as_bytes().to_vec();
        let end = (at + bytes.len()).min(damaged.len());
        damaged.splice(at..end, bytes);
        let text = String::from_utf8_lossy(&damaged);
        let _ = Definition::parse(&text);
        let _ = rewrite(&text, &Changes { uuid: Some("x".into()), new_macs: true, ..Changes::default() });
    }
}
