//! Block graphs of documented definitions, without real images.

use std::collections::BTreeMap;
use std::io;

use super::*;
use crate::capture::Definition;

/// Images by path: format and header.
#[derive(Default)]
struct Images(BTreeMap<PathBuf, Header>);

impl Images {
    fn with(mut self, path: &str, backing: Option<(&str, Option<&str>)>) -> Images {
        let backing =
            backing.map(|(name, format)| BackingName { name: name.to_owned(), format: format.map(str::to_owned) });
        self.0.insert(path.into(), Header { backing, keeps_bitmaps: true, ..Header::default() });
        self
    }
}

impl ImageLookup for Images {
    fn resolve(&self, source: &DiskSource) -> Result<DiskSource> {
        Ok(match source {
            DiskSource::Volume { pool, volume } => DiskSource::File { path: format!("/pools/{pool}/{volume}").into() },
            other => other.clone(),
        })
    }

    fn header(&self, place: &LayerPlace, format: &str, _: Option<Slice>) -> Result<Header> {
        match place {
            LayerPlace::Path(path) if format != "raw" => {
                let missing = || Error::io("open", path)(io::ErrorKind::NotFound.into());
                self.0.get(path).cloned().ok_or_else(missing)
            }
            _ => Ok(Header::default()),
        }
    }

    fn is_device(&self, path: &Path) -> bool {
        path.starts_with("/dev")
    }
}

fn disk(xml: &str) -> DefinedDisk {
    let xml = format!("<domain type='qemu'><name>a</name><devices>{xml}</devices></domain>");
    Definition::parse(&xml).unwrap().disks.remove(0)
}

fn graph_of(xml: &str, images: &Images) -> Result<Graph> {
    build("d0", &chain(&disk(xml), images)?, Path::new("/run/side"))
}

fn file(layer: usize, path: &str) -> Value {
    json!({ "driver": "file", "filename": path, "node-name": format!("d0-{layer}-storage"), "read-only": true })
}

fn qcow2(layer: usize, backing: Value) -> Value {
    json!({ "driver": "qcow2", "file": format!("d0-{layer}-storage"), "backing": backing,
            "node-name": format!("d0-{layer}-format"), "read-only": true })
}

#[test]
fn headers_are_followed_if_the_definition_lacks_a_backing_chain() {
    let images = Images::default().with("/a/top.qcow2", Some(("mid.qcow2", Some("qcow2")))).with(
        "/a/mid.qcow2",
        Some(("json:{\"driver\":\"raw\",\"file\":{\"driver\":\"file\",\"filename\":\"/b/base\"}}", None)),
    );
    let graph = graph_of(
        "<disk type='file'><driver type='qcow2'/><source file='/a/top.qcow2'/><target dev='vda'/></disk>",
        &images,
    )
    .unwrap();
    let wanted = vec![
        file(2, "/b/base"),
        file(1, "/a/mid.qcow2"),
        qcow2(1, json!("d0-2-storage")),
        file(0, "/a/top.qcow2"),
        qcow2(0, json!("d0-1-format")),
    ];
    assert_eq!((graph.nodes, graph.top.as_str()), (wanted, "d0-0-format"));
}

#[test]
fn backing_chain_in_the_definition_overrides_headers() {
    let images = Images::default()
        .with("/a/top", Some(("/a/gone", None)))
        .with("/a/mid", Some(("/a/low", Some("qcow2"))))
        .with("/a/low", None);
    let xml = |end: &str| {
        format!(
            "<disk type='file'><driver type='qcow2'/><source file='/a/top'/><backingStore type='file'>\
             <format type='qcow2'/><source file='/a/mid'/>{end}</backingStore><target dev='vda'/></disk>"
        )
    };
    let complete = graph_of(&xml("<backingStore/>"), &images).unwrap();
    let tops = [file(0, "/a/top"), qcow2(0, json!("d0-1-format"))];
    assert_eq!(complete.nodes[..2], [file(1, "/a/mid"), qcow2(1, Value::Null)]);
    assert_eq!(complete.nodes[2..], tops);
    // Layers that the definition does not list are detected.
    let open = graph_of(&xml(""), &images).unwrap();
    assert_eq!(open.nodes.len(), 6);
    assert_eq!(open.nodes[3], qcow2(1, json!("d0-2-format")));
    let alone =
        "<disk type='file'><driver type='qcow2'/><source file='/a/top'/><backingStore/><target dev='vda'/></disk>";
    assert_eq!(graph_of(alone, &images).unwrap().nodes[1], qcow2(0, Value::Null));
}

#[test]
fn backing_loops_unsafe_names_and_missing_formats_are_refused() {
    let xml = "<disk type='file'><driver type='qcow2'/><source file='/a/top'/><target dev='vda'/></disk>";
    let images = Images::default().with("/a/top", Some(("/a/base", None)));
    assert!(matches!(graph_of(xml, &images), Err(Error::NoBackingFormat { .. })));
    let images = Images::default().with("/a/top", Some(("top", Some("qcow2"))));
    assert!(graph_of(xml, &images).unwrap_err().to_string().contains("loop"));
    let images = Images::default().with("/a/top", Some(("fat:/etc", Some("raw"))));
    assert!(graph_of(xml, &images).unwrap_err().to_string().contains("fat:"));
}

#[test]
fn slices_devices_volumes_and_encryption_become_block_nodes() {
    let images = Images::default().with("/a/top", None).with("/dev/vg/lv", None);
    let slice = "<disk type='file'><driver type='raw'/><source file='/a/box'><slices><slice type='storage' \
                 offset='1048576' size='4194304'/></slices></source><target dev='vda'/></disk>";
    let graph = graph_of(slice, &images).unwrap();
    let part = json!({ "driver": "raw", "offset": 1 << 20, "size": 4 << 20, "file": "d0-0-storage",
                       "node-name": "d0-0-slice", "read-only": true });
    assert_eq!((graph.nodes, graph.top.as_str()), (vec![file(0, "/a/box"), part], "d0-0-slice"));
    let device = "<disk type='block'><driver type='qcow2'/><source dev='/dev/vg/lv'/><target dev='vda'/></disk>";
    assert_eq!(graph_of(device, &images).unwrap().nodes[0]["driver"], "host_device");
    let volume = "<disk type='volume'><driver type='raw'/><source pool='p' volume='v'/><target dev='vda'/></disk>";
    assert_eq!(graph_of(volume, &images).unwrap().nodes, [file(0, "/pools/p/v")]);
    let luks = "<disk type='file'><driver type='raw'/><source file='/a/l'><encryption format='luks'>\
                <secret type='passphrase' uuid='u'/></encryption></source><target dev='vda'/></disk>";
    let graph = graph_of(luks, &images).unwrap();
    assert_eq!(graph.nodes[1]["driver"], "luks");
    assert_eq!(graph.nodes[1]["key-secret"], graph.secrets[0].0.as_str());
    let inside = "<disk type='file'><driver type='qcow2'/><source file='/a/top'/><encryption format='luks'>\
                  <secret type='passphrase' usage='/a/top'/></encryption><target dev='vda'/></disk>";
    let graph = graph_of(inside, &images).unwrap();
    assert_eq!(graph.nodes[1]["encrypt"], json!({ "format": "luks", "key-secret": graph.secrets[0].0 }));
}

#[test]
fn data_file_named_only_by_a_header_is_served_unprivileged() {
    let mut images = Images::default().with("/a/top", None);
    images.0.get_mut(Path::new("/a/top")).unwrap().data_file = Some("data.raw".into());
    let given = "<disk type='file'><driver type='qcow2'/><source file='/a/top'><dataStore type='file'>\
                 <format type='raw'/><source file='/b/data'/></dataStore></source><target dev='vda'/></disk>";
    let graph = graph_of(given, &images).unwrap();
    assert!(graph.sides.is_empty());
    assert_eq!(graph.nodes[1]["filename"], "/b/data");
    assert_eq!(graph.nodes[2]["data-file"], "d0-0-data");
    let found = "<disk type='file'><driver type='qcow2'/><source file='/a/top'/><target dev='vda'/></disk>";
    let graph = graph_of(found, &images).unwrap();
    assert_eq!(graph.sides[0].node["filename"], "/a/data.raw");
    assert_eq!(graph.nodes[1]["driver"], "nbd");
    assert_eq!(graph.nodes[1]["server"]["path"], "/run/side");
    images.0.insert("/a/flat".into(), Header { has_extents: true, ..Header::default() });
    let vmdk = "<disk type='file'><driver type='vmdk'/><source file='/a/flat'/><target dev='vda'/></disk>";
    assert!(graph_of(vmdk, &images).unwrap().is_unprivileged);
}

#[test]
fn network_disk_options_match_those_of_libvirt() {
    let of = |source: &str| {
        let xml = format!("<disk type='network'><driver type='raw'/>{source}<target dev='vda'/></disk>");
        let graph = graph_of(&xml, &Images::default())?;
        let mut node = graph.nodes[0].as_object().unwrap().clone();
        node.retain(|key, _| !["node-name", "read-only"].contains(&key.as_str()));
        Ok::<_, Error>((Value::Object(node), graph.secrets.len()))
    };
    let rbd = "<source protocol='rbd' name='pool/ns/image'><host name='a' port='6789'/><host name='b'/>\
               <snapshot name='s'/><config file='/etc/ceph/c.conf'/><auth username='admin'>\
               <secret type='ceph' uuid='u'/></auth></source>";
    let wanted = json!({ "driver": "rbd", "pool": "pool", "namespace": "ns", "image": "image", "snapshot": "s",
        "conf": "/etc/ceph/c.conf", "user": "admin", "auth-client-required": ["cephx", "none"],
        "key-secret": "d0-0-storage-auth",
        "server": [{ "host": "a", "port": "6789" }, { "host": "b", "port": "6789" }] });
    assert_eq!(of(rbd).unwrap(), (wanted, 1));
    let nbd = "<source protocol='nbd' name='x'><host transport='unix' socket='/run/n'/></source>";
    let wanted = json!({ "driver": "nbd", "server": { "type": "unix", "path": "/run/n" }, "export": "x" });
    assert_eq!(of(nbd).unwrap(), (wanted, 0));
    let iscsi = "<source protocol='iscsi' name='iqn.2013-07.com.example:iscsi-pool/1'><host name='h' port='3260'/>\
                 <initiator><iqn name='iqn.me'/></initiator></source>";
    let wanted = json!({ "driver": "iscsi", "transport": "tcp", "portal": "h:3260",
        "target": "iqn.2013-07.com.example:iscsi-pool", "lun": 1, "initiator-name": "iqn.me" });
    assert_eq!(of(iscsi).unwrap(), (wanted, 0));
    let https =
        "<source protocol='https' name='a/b.img' query='k=v'><host name='h' port='443'/><ssl verify='no'/></source>";
    let wanted = json!({ "driver": "https", "url": "https://h:443/a/b.img?k=v", "sslverify": false });
    assert_eq!(of(https).unwrap(), (wanted, 0));
    // A source that cannot be opened as libvirt opens it is refused.
    let cookies = "<cookies><cookie name='a'>b</cookie></cookies>";
    for unsupported in [
        "<source protocol='nbd' name='x' tls='yes'><host name='h'/></source>".to_owned(),
        format!("<source protocol='https' name='x'><host name='h'/>{cookies}</source>"),
    ] {
        let error = of(&unsupported).unwrap_err().to_string();
        assert!(error.contains("can be read only while the machine runs"), "{error}");
    }
    assert!(of("<source protocol='vxhs' name='x'><host name='h'/></source>").is_err());
}
