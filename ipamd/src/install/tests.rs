use super::*;

fn config(bin: &Path, conf: &Path, version: CniVersion) -> Config {
    let text = |path: &Path| Some(path.to_string_lossy().into_owned());
    let host_cni = HostCni { bin_dir: text(bin), conf_dir: text(conf), version };
    Config { host_cni, ..Config::default() }
}

fn shipped(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cni/install").join(name);
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn the_list_is_the_one_that_the_plugin_ships_with() {
    let (bin, conf) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(bin.path().join("portmap"), "").unwrap();
    for (version, name) in
        [(CniVersion::V1_0, "10-veni.conflist"), (CniVersion::V1_1, "10-veni-1.1.conflist")]
    {
        let config = config(bin.path(), conf.path(), version);
        assert!(conflist(&config).unwrap(), "{version:?}");
        let written = fs::read(conf.path().join(CONFLIST)).unwrap();
        assert_eq!(serde_json::from_slice::<Value>(&written).unwrap(), shipped(name));
        assert!(!conflist(&config).unwrap(), "as it is: left alone");
    }
    assert_eq!(fs::read_dir(conf.path()).unwrap().count(), 1, "nothing beside it");
}

#[test]
fn a_plugin_that_the_node_lacks_is_not_in_the_list() {
    let (bin, conf) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let config = config(bin.path(), conf.path(), CniVersion::V1_0);
    conflist(&config).unwrap();
    let written = fs::read_to_string(conf.path().join(CONFLIST)).unwrap();
    assert!(written.contains(PLUGIN) && !written.contains("portmap"), "{written}");
}

#[test]
fn a_folder_that_takes_nothing_keeps_what_was_there() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let config = config(dir.path(), &file, CniVersion::V1_0);
    assert!(conflist(&config).is_err(), "a file is no folder");
    // A folder in the list's place: the rename fails, and nothing is left of the attempt.
    let taken = dir.path().join("conf");
    fs::create_dir_all(taken.join(CONFLIST)).unwrap();
    let config = self::config(dir.path(), &taken, CniVersion::V1_0);
    assert!(conflist(&config).is_err());
    assert_eq!(fs::read_dir(&taken).unwrap().count(), 1);
}

#[test]
fn what_was_installed_goes_and_may_be_gone() {
    let (bin, conf) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(bin.path().join(PLUGIN), "").unwrap();
    let config = config(bin.path(), conf.path(), CniVersion::V1_0);
    conflist(&config).unwrap();
    for _ in 0..2 {
        remove(&config).unwrap();
        let left = fs::read_dir(bin.path()).unwrap().chain(fs::read_dir(conf.path()).unwrap());
        assert_eq!(left.count(), 0);
    }
}
