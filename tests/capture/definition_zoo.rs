//! Definitions as people publish them, restored in place and as a copy: pools, labels, firmware auto-selection,
//! stateless loaders, unusual controllers, other architectures.
//!
//! Each shape is a part of a definition. A restore in place must not change a byte of it; a copy must not have the
//! listed parts.

use kvmb::capture::domain_xml::definition::{Definition, DiskSource};
use kvmb::capture::domain_xml::references::references;
use kvmb::capture::domain_xml::rewrite::isolated::{Isolation, isolate};
use kvmb::capture::domain_xml::rewrite::{Changes, NewDisk, NewDiskKind, Rewritten, rewrite_with_notes};

const UUID: &str = "52e8dc38-9c15-45ff-84fc-563d001b34c9";
const COPY_UUID: &str = "00000000-1111-2222-3333-444444444444";

/// A shape: name, content of `<domain>`, content of `<devices>`, and the parts that the copy must not have.
type Shape = (&'static str, &'static str, &'static str, &'static [&'static str]);

const ZOO: [Shape; 52] = [
    ("nothing special", "", "", &[]),
    (
        "firmware by libvirt's choice",
        "<os firmware='efi'><type>hvm</type><firmware><feature enabled='yes' name='secure-boot'/></firmware></os>",
        "",
        &[],
    ),
    (
        "stateless loader",
        "<os><type>hvm</type><loader readonly='yes' type='rom' stateless='yes'>/usr/share/OVMF/OVMF.amdsev.fd</loader>\
         </os>",
        "",
        &[],
    ),
    (
        "pflash with variables",
        "<os><type>hvm</type><loader readonly='yes' secure='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE.fd</loader>\
         <nvram template='/usr/share/OVMF/OVMF_VARS.fd'>/var/lib/libvirt/qemu/nvram/vm1_VARS.fd</nvram></os>",
        "",
        &[],
    ),
    (
        "variables in a file of its own element",
        "<os><type>hvm</type><nvram type='file'><source file='/nvram/vm1.fd'/></nvram></os>",
        "",
        &[],
    ),
    (
        "direct boot",
        "<os><type>hvm</type><kernel>/boot/vmlinuz</kernel><initrd>/boot/initrd.img</initrd><cmdline>root=/dev/vda1 \
         console=ttyS0</cmdline></os>",
        "",
        &[],
    ),
    (
        "aarch64",
        "<os><type arch='aarch64' machine='virt-10.0'>hvm</type></os><features><gic version='3'/></features><cpu \
         mode='host-passthrough'/>",
        "<controller type='usb' model='qemu-xhci' ports='15'/>",
        &[],
    ),
    (
        "s390x",
        "<os><type arch='s390x' machine='s390-ccw-virtio'>hvm</type></os>",
        "<controller type='scsi' index='0' model='virtio-scsi'><address type='ccw' cssid='0xfe' ssid='0x0' \
         devno='0x0002'/></controller><console type='pty'><target type='sclp' port='0'/></console><memballoon \
         model='virtio'><address type='ccw' cssid='0xfe' ssid='0x0' devno='0x0003'/></memballoon><panic model='s390'/>",
        &[],
    ),
    (
        "ppc64le",
        "<os><type arch='ppc64le' machine='pseries'>hvm</type></os>",
        "<controller type='pci' index='0' model='pci-root'><target index='0'/></controller><panic model='pseries'/>",
        &[],
    ),
    ("riscv64", "<os><type arch='riscv64' machine='virt'>hvm</type></os>", "", &[]),
    (
        "numa and huge pages",
        "<memoryBacking><hugepages><page size='2048' unit='KiB' nodeset='0'/></hugepages><access mode='shared'/>\
         </memoryBacking><numatune><memory mode='strict' nodeset='0'/></numatune><cputune><vcpupin vcpu='0' \
         cpuset='2'/></cputune>",
        "",
        &[],
    ),
    (
        "hyper-v",
        "<features><acpi/><hyperv mode='custom'><relaxed state='on'/><vapic state='on'/><spinlocks state='on' \
         retries='8191'/><vendor_id state='on' value='kvm hyperv'/></hyperv><kvm><hidden state='on'/></kvm></features>\
         <clock offset='localtime'><timer name='hypervclock' present='yes'/></clock>",
        "",
        &[],
    ),
    (
        "sev",
        "<launchSecurity type='sev'><cbitpos>47</cbitpos><reducedPhysBits>1</reducedPhysBits><policy>0x0003</policy>\
         </launchSecurity>",
        "",
        &[],
    ),
    ("static label", "<seclabel type='static' model='dac' relabel='yes'><label>+107:+107</label></seclabel>", "", &[]),
    (
        "dynamic label with a base",
        "<seclabel type='dynamic' model='selinux' relabel='yes'><baselabel>system_u:system_r:svirt_t:s0</baselabel>\
         </seclabel>",
        "",
        &[],
    ),
    ("no label", "<seclabel type='none' model='none'/>", "", &[]),
    (
        "metadata of others",
        "<metadata><libosinfo:libosinfo xmlns:libosinfo=\"http://libosinfo.org/xmlns/libvirt/domain/1.0\">\
         <libosinfo:os id=\"http://debian.org/debian/12\"/></libosinfo:libosinfo><nova:instance \
         xmlns:nova=\"http://openstack.org/xmlns/libvirt/nova/1.1\"><nova:name>vm1</nova:name></nova:instance>\
         </metadata>",
        "",
        &[],
    ),
    (
        "smbios",
        "<sysinfo type='smbios'><system><entry name='manufacturer'>ACME</entry><entry \
         name='uuid'>52e8dc38-9c15-45ff-84fc-563d001b34c9</entry></system><oemStrings><entry>x=y</entry></oemStrings>\
         </sysinfo>",
        "",
        &[UUID],
    ),
    ("generation id", "<genid>11111111-2222-3333-4444-555555555555</genid>", "", &["11111111-2222"]),
    (
        "fixed vnc port",
        "",
        "<graphics type='vnc' port='5931' autoport='no' listen='127.0.0.1' passwd='x'><listen type='address' \
         address='127.0.0.1'/></graphics>",
        &["5931"],
    ),
    (
        "vnc with a web socket",
        "",
        "<graphics type='vnc' port='5931' websocket='5731' autoport='no'/>",
        &["5931", "5731"],
    ),
    (
        "vnc socket",
        "",
        "<graphics type='vnc' socket='/run/vm1.vnc'><listen type='socket' socket='/run/vm1.vnc'/></graphics>",
        &["/run/vm1.vnc"],
    ),
    (
        "spice with tls",
        "",
        "<graphics type='spice' port='5930' tlsPort='5940' autoport='no'><channel name='main' mode='secure'/><image \
         compression='off'/></graphics>",
        &["5930", "5940"],
    ),
    (
        "automatic spice",
        "",
        "<graphics type='spice' autoport='yes'><gl enable='yes' rendernode='/dev/dri/renderD128'/></graphics>",
        &[],
    ),
    (
        "serial socket",
        "",
        "<serial type='unix'><source mode='bind' path='/run/vm1.serial'/><target type='isa-serial' port='0'/></serial>\
         <console type='unix'><source mode='bind' path='/run/vm1.serial'/><target type='serial' port='0'/></console>",
        &["'/run/vm1.serial'"],
    ),
    (
        "serial over tcp",
        "",
        "<serial type='tcp'><source mode='bind' host='127.0.0.1' service='4555'/><protocol type='telnet'/><target \
         port='0'/></serial>",
        &["4555", "telnet"],
    ),
    (
        "serial over udp",
        "",
        "<serial type='udp'><source mode='connect' host='10.0.0.9' service='514'/><target port='0'/></serial>",
        &["514"],
    ),
    (
        "serial into a file",
        "",
        "<serial type='file'><source path='/var/log/vm1.log' append='on'/><target port='0'/></serial>",
        &["'/var/log/vm1.log'"],
    ),
    (
        "serial with a log",
        "",
        "<serial type='pty'><log file='/var/log/vm1-console.log' append='on'/><target port='0'/></serial>",
        &["'/var/log/vm1-console.log'"],
    ),
    (
        "serial port of the host",
        "",
        "<serial type='dev'><source path='/dev/ttyS0'/><target port='0'/></serial>",
        &["/dev/ttyS0"],
    ),
    (
        "agent at a fixed path",
        "",
        "<channel type='unix'><source mode='bind' path='/var/lib/libvirt/qemu/vm1.agent'/><target type='virtio' \
         name='org.qemu.guest_agent.0'/></channel>",
        &["vm1.agent"],
    ),
    ("spice agent", "", "<channel type='spicevmc'><target type='virtio' name='com.redhat.spice.0'/></channel>", &[]),
    ("fixed vsock", "", "<vsock model='virtio'><cid auto='no' address='42'/></vsock>", &["'42'"]),
    (
        "network by name",
        "",
        "<interface type='network'><mac address='52:54:00:00:00:01'/><source network='default' portgroup='dev'/><model \
         type='virtio'/><filterref filter='clean-traffic'/></interface>",
        &["52:54:00:00:00:01"],
    ),
    (
        "bridge with a named tap",
        "",
        "<interface type='bridge'><mac address='52:54:00:00:00:01'/><source bridge='br0'/><target dev='tap-vm1'/>\
         <model type='virtio'/><mtu size='9000'/></interface>",
        &["tap-vm1"],
    ),
    (
        "open vSwitch",
        "",
        "<interface type='bridge'><mac address='52:54:00:00:00:01'/><source bridge='ovsbr0'/><vlan><tag id='42'/>\
         </vlan><virtualport type='openvswitch'><parameters interfaceid='09b11c53-8b5c-4eeb-8f00-d84eaa0aaa4f'/>\
         </virtualport></interface>",
        &["09b11c53"],
    ),
    (
        "tap of somebody else",
        "",
        "<interface type='ethernet'><mac address='52:54:00:00:00:01'/><target dev='mytap1' managed='no'/></interface>",
        &["mytap1"],
    ),
    (
        "macvtap",
        "",
        "<interface type='direct'><mac address='52:54:00:00:00:01'/><source dev='eth0' mode='bridge'/></interface>",
        &["52:54:00:00:00:01"],
    ),
    (
        "macvtap that takes the device",
        "",
        "<interface type='direct'><mac address='52:54:00:00:00:01'/><source dev='eth1' mode='passthrough'/>\
         </interface>",
        &["eth1"],
    ),
    (
        "virtual function",
        "",
        "<interface type='hostdev' managed='yes'><mac address='52:54:00:00:00:01'/><source><address type='pci' \
         domain='0x0000' bus='0x07' slot='0x00' function='0x0'/></source></interface>",
        &["hostdev"],
    ),
    (
        "forwarded ports",
        "",
        "<interface type='user'><mac address='52:54:00:00:00:01'/><backend type='passt' logFile='/var/log/passt.log'/>\
         <portForward proto='tcp'><range start='2022' to='22'/></portForward></interface>",
        &["2022", "/var/log/passt.log"],
    ),
    (
        "vhost-user interface",
        "",
        "<interface type='vhostuser'><mac address='52:54:00:00:00:01'/><source type='unix' path='/run/vhost1.sock' \
         mode='server'/></interface>",
        &["/run/vhost1.sock"],
    ),
    (
        "graphics card passed through",
        "",
        "<hostdev mode='subsystem' type='pci' managed='yes'><source><address domain='0x0000' bus='0x01' slot='0x00' \
         function='0x0'/></source><rom file='/roms/gpu.rom'/></hostdev>",
        &["hostdev"],
    ),
    (
        "usb device passed through",
        "",
        "<hostdev mode='subsystem' type='usb' managed='yes'><source><vendor id='0x1050'/><product id='0x0407'/>\
         </source></hostdev>",
        &["0x1050"],
    ),
    (
        "mediated device",
        "",
        "<hostdev mode='subsystem' type='mdev' model='vfio-pci'><source><address \
         uuid='c2177883-f1bb-47f0-914d-32a22e3a8804'/></source></hostdev>",
        &["c2177883"],
    ),
    (
        "virtiofs",
        "",
        "<filesystem type='mount' accessmode='passthrough'><driver type='virtiofs' queue='1024'/><source \
         dir='/srv/share'/><target dir='share'/></filesystem>",
        &["/srv/share"],
    ),
    (
        "tpm with a state of its own place",
        "",
        "<tpm model='tpm-crb'><backend type='emulator' version='2.0' persistent_state='yes'><source type='dir' \
         path='/tpm/vm1'/></backend></tpm>",
        &["/tpm/vm1"],
    ),
    (
        "tpm of the host",
        "",
        "<tpm model='tpm-tis'><backend type='passthrough'><device path='/dev/tpm0'/></backend></tpm>",
        &["/dev/tpm0"],
    ),
    (
        "shared memory",
        "",
        "<shmem name='looking-glass'><model type='ivshmem-plain'/><size unit='M'>32</size></shmem>",
        &["looking-glass"],
    ),
    (
        "persistent memory",
        "",
        "<memory model='nvdimm' access='shared'><source><path>/srv/nvdimm</path></source><target><size \
         unit='KiB'>524288</size><node>0</node></target></memory>",
        &["/srv/nvdimm"],
    ),
    (
        "other disks",
        "",
        "<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='/srv/shared.img'/><target \
         dev='vdb' bus='virtio'/><shareable/></disk><disk type='file' device='cdrom'><driver name='qemu' type='raw'/>\
         <source file='/iso/x.iso'/><target dev='sda' bus='sata'/><readonly/></disk><disk type='block' device='lun'>\
         <driver name='qemu' type='raw'/><source dev='/dev/sdx'/><target dev='sdb' bus='scsi'/></disk>",
        &["/srv/shared.img", "/dev/sdx"],
    ),
    (
        "arguments of QEMU's",
        "<qemu:commandline xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><qemu:arg value='-chardev'/>\
         <qemu:arg value='socket,id=mon1,path=/run/vm1.qmp,server=on'/><qemu:arg value='-mon'/><qemu:arg \
         value='chardev=mon1,mode=control'/><qemu:arg value='-global'/><qemu:arg value='ICH9-LPC.disable_s3=1'/>\
         <qemu:env name='A' value='b'/></qemu:commandline>",
        "",
        &["/run/vm1.qmp", "chardev=mon1"],
    ),
];

/// The same disk in all of them, in every notation that definitions use, in turn.
const DISKS: [&str; 5] = [
    "<disk type='file' device='disk'>\n      <driver name='qemu' type='qcow2' cache='none' discard='unmap'>\
     <metadata_cache><max_size unit='bytes'>1048576</max_size></metadata_cache></driver>\n      <source \
     file='/images/vm1.qcow2' startupPolicy='optional'>\n        <seclabel model='dac' relabel='no'/>\n      \
     </source>\n      <target dev='vda' bus='virtio'/>\n      <serial>WD-1</serial>\n    </disk>",
    "<disk type='block' device='disk' snapshot='no'><driver name='qemu' type='qcow2' io='native'/><source \
     dev='/dev/vg0/vm1'/><target dev='vda' bus='scsi' rotation_rate='1'/><wwn>5000c50015ea71aa</wwn></disk>",
    "<disk type='volume' device='disk'><driver name='qemu' type='qcow2'/><source pool='default' volume='vm1.qcow2'/>\
     <target dev='vda' bus='virtio'/></disk>",
    "<disk type='file'><source file='/images/vm1.img'/><target dev='vda'/></disk>",
    "<disk type='file' device='disk'><driver name='qemu' type='raw' queues='4' iothread='1'/><source file='/images/a \
     &amp; b.img'/><iotune><total_iops_sec>400</total_iops_sec><group_name>g</group_name></iotune><blockio \
     logical_block_size='512'/><target dev='vda' bus='virtio'/><boot order='1'/></disk>",
];

fn definition(shape: &Shape, disk: &str) -> String {
    let (_, domain, devices, _) = shape;
    format!(
        "<domain type='kvm'>\n  <name>vm1</name>\n  <uuid>{UUID}</uuid>\n  <memory unit='KiB'>524288</memory>\n  \
         <vcpu placement='static'>2</vcpu>\n  {domain}\n  <devices>\n    {disk}\n    {devices}\n  \
         </devices>\n</domain>\n"
    )
}

fn all() -> impl Iterator<Item = (String, String, &'static Shape)> {
    let shapes = ZOO.iter().enumerate();
    shapes.map(|(at, shape)| {
        let xml = definition(shape, DISKS[at % DISKS.len()]);
        (format!("{} ({at})", shape.0), xml, shape)
    })
}

#[test]
fn in_place_rewrite_keeps_every_definition_byte_for_byte() {
    for (name, xml, _) in all() {
        let parsed = Definition::parse(&xml).unwrap_or_else(|error| panic!("{name}: {error}"));
        let disk = parsed.disk("vda").expect("vda");
        let (path, kind) = match &disk.source {
            DiskSource::File { path } => (path.clone(), NewDiskKind::File),
            DiskSource::Block { path } => (path.clone(), NewDiskKind::Block),
            _ => ("/pool/vm1.qcow2".into(), NewDiskKind::File),
        };
        let format = disk.format.clone().unwrap_or_else(|| "raw".into());
        let changes = Changes {
            disks: [("vda".to_owned(), NewDisk { path, kind, format })].into(),
            unmoved: ["vda".to_owned()].into(),
            ..Changes::default()
        };
        let Rewritten { xml: after, notes } = rewrite_with_notes(&xml, &changes).expect(&name);
        assert_eq!(after, xml, "{name}");
        assert!(notes.is_empty(), "{name}: {notes:?}");
        references(&xml).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}

#[test]
fn copied_definitions_share_no_resources_with_the_original() {
    for (name, xml, (_, domain, devices, unwanted)) in all() {
        let new = NewDisk { path: "/copy/vm2-vda.qcow2".into(), kind: NewDiskKind::File, format: "qcow2".into() };
        let changes = Changes {
            name: Some("vm2".into()),
            uuid: Some(COPY_UUID.into()),
            new_macs: true,
            own_resources: true,
            disks: [("vda".to_owned(), new)].into(),
            ..Changes::default()
        };
        let copy = rewrite_with_notes(&xml, &changes).unwrap_or_else(|error| panic!("{name}: {error}"));
        let parsed = Definition::parse(&copy.xml).unwrap_or_else(|error| panic!("{name}: {error}\n{}", copy.xml));
        assert_eq!((&*parsed.name, parsed.uuid.as_deref()), ("vm2", Some(COPY_UUID)), "{name}");
        assert!(!copy.xml.contains(UUID) && !copy.xml.contains("/images/") && !copy.xml.contains("/dev/vg0"), "{name}");
        for word in *unwanted {
            assert!(format!("{domain}{devices}").contains(word), "{name}: {word} was never there");
            assert!(!copy.xml.contains(word), "{name}: {word} is still there\n{}", copy.xml);
        }
        if unwanted.is_empty() {
            assert!(copy.notes.is_empty(), "{name}: {:?}", copy.notes);
            let is_kept = |part: &str| copy.xml.contains(part);
            assert!(is_kept(domain) && is_kept(devices), "{name}: a part was changed\n{}", copy.xml);
        }
        // Read-only media may be shared.
        assert_eq!(xml.contains("/iso/x.iso"), copy.xml.contains("/iso/x.iso"), "{name}");
    }
}

#[test]
fn isolated_drill_definitions_have_no_access_to_the_host() {
    // Parts that may give access to the host, to people or to other machines.
    let gone = [
        "<hostdev",
        "<filesystem",
        "<graphics",
        "<audio",
        "<shmem",
        "<vsock",
        "<redirdev",
        "<lease",
        "hugepages",
        "<numatune",
        "<cputune",
        "commandline",
        "type='network'><mac",
        "type='bridge'",
        "type='direct'",
        "type='vhostuser'",
        "spicevmc",
        "cache='none'",
        "<iotune",
    ];
    let served = ["vda".to_owned()].into();
    for (name, xml, _) in all() {
        let new = NewDisk { path: "/drill/vda".into(), kind: NewDiskKind::File, format: "raw".into() };
        let changes = Changes {
            name: Some("kvmb-drill-1".into()),
            uuid: Some(COPY_UUID.into()),
            new_macs: true,
            own_resources: true,
            disks: [("vda".to_owned(), new)].into(),
            nvram: Some("/drill/nvram".into()),
            ..Changes::default()
        };
        let copy = rewrite_with_notes(&xml, &changes).unwrap_or_else(|error| panic!("{name}: {error}"));
        let isolation = Isolation {
            disks: &served,
            nbd: "/drill/nbd".as_ref(),
            console: "/drill/console".as_ref(),
            firmware: "/drill/firmware".as_ref(),
            nvram: "/drill/nvram".as_ref(),
            memory_bytes: 256 << 20,
            vcpus: 1,
            is_emulated: true,
        };
        let isolated = isolate(&copy.xml, &isolation).unwrap_or_else(|error| panic!("{name}: {error}")).xml;
        let parsed = Definition::parse(&isolated).unwrap_or_else(|error| panic!("{name}: {error}\n{isolated}"));
        assert_eq!((parsed.memory_bytes, parsed.vcpus, &*parsed.domain_type), (256 << 20, 1, "qemu"), "{name}");
        let source = &parsed.disk("vda").expect("vda").source;
        assert!(matches!(source, DiskSource::Network { protocol, .. } if protocol == "nbd"), "{name}: {source:?}");
        for word in gone {
            assert!(!isolated.contains(word), "{name}: {word} is still there\n{isolated}");
        }
        assert!(isolated.contains("<on_crash>preserve</on_crash>"), "{name}");
        assert!(isolated.contains("path='/drill/console'"), "{name}: nobody would see a console\n{isolated}");
        if let Some(nvram) = parsed.nvram.as_ref().and_then(|nvram| nvram.path()) {
            assert_eq!(nvram, std::path::Path::new("/drill/nvram"), "{name}");
        }
        // Isolating it again changes nothing.
        let again = isolate(&isolated, &isolation).expect(&name).xml;
        assert_eq!(Definition::parse(&again).expect(&name).disks, parsed.disks, "{name}");
    }
}

#[test]
fn mapped_networks_and_bridges_are_renamed() {
    let devices = "<interface type='network'><source network='default'/></interface>\
                   <interface type='bridge'><source bridge='br0'/></interface>\
                   <interface type='direct'><source dev='eth0' mode='bridge'/></interface>";
    let xml = definition(&("networks", "", devices, &[]), DISKS[0]);
    let changes = Changes {
        networks: [("default".to_owned(), "lan & more".to_owned())].into(),
        bridges: [("br0".to_owned(), "br9".to_owned()), ("eth0".to_owned(), "enp1s0".to_owned())].into(),
        ..Changes::default()
    };
    let renamed = rewrite_with_notes(&xml, &changes).expect("rewrite").xml;
    let expected = xml
        .replace("network='default'", "network='lan &amp; more'")
        .replace("bridge='br0'", "bridge='br9'")
        .replace("dev='eth0'", "dev='enp1s0'");
    assert_eq!(renamed, expected);
}
