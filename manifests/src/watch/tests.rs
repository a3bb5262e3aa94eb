use std::fs;

use super::*;

/// Longer than anything here takes, for a test that would otherwise hang.
const PATIENCE: Duration = Duration::from_secs(30);

struct Scene {
    dir: tempfile::TempDir,
    batches: mpsc::Receiver<Batch>,
}

impl Scene {
    /// A folder `m` with these files, watched; its first batch.
    async fn with(files: &[(&str, String)]) -> (Self, Told) {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("m")).unwrap();
        for (name, text) in files {
            fs::write(dir.path().join("m").join(name), text).unwrap();
        }
        Self::over(dir).await
    }

    async fn over(dir: tempfile::TempDir) -> (Self, Told) {
        let batches = watch(&dir.path().join("m")).unwrap();
        let mut scene = Self { dir, batches };
        let told = scene.next().await;
        (scene, told)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("m").join(name)
    }

    fn write(&self, name: &str, text: &str) {
        let fresh = self.dir.path().join("fresh");
        fs::write(&fresh, text).unwrap();
        fs::rename(&fresh, self.path(name)).unwrap();
    }

    async fn next(&mut self) -> Told {
        let batch = time::timeout(PATIENCE, self.batches.recv()).await.expect("a batch").unwrap();
        Told {
            apply: batch.apply.iter().map(|object| object.key().name).collect(),
            delete: batch.delete.iter().map(|key| key.name.clone()).collect(),
            wrong: batch.diagnostics.iter().map(ToString::to_string).collect(),
            complete: batch.complete,
        }
    }

    /// Batches until these pods are what all of them together left in force.
    async fn until(&mut self, mut in_force: BTreeSet<String>, expect: &[&str]) {
        let expect: BTreeSet<String> = expect.iter().map(ToString::to_string).collect();
        while in_force != expect {
            let told = self.next().await;
            in_force.extend(told.apply);
            in_force.retain(|name| !told.delete.contains(name));
        }
    }
}

#[derive(Debug, PartialEq)]
struct Told {
    apply: Vec<String>,
    delete: Vec<String>,
    wrong: Vec<String>,
    complete: bool,
}

impl Told {
    fn of(apply: &[&str], delete: &[&str]) -> Self {
        let own = |names: &[&str]| names.iter().map(ToString::to_string).collect();
        Self { apply: own(apply), delete: own(delete), wrong: Vec::new(), complete: true }
    }
}

fn pod(name: &str) -> String {
    labelled(name, "one")
}

fn labelled(name: &str, label: &str) -> String {
    format!("---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{v: {label}}}}}\n")
}

#[tokio::test]
async fn files_that_come_change_and_go_are_batches() {
    let (mut scene, first) = Scene::with(&[("1.yaml", pod("a") + &pod("b"))]).await;
    assert_eq!(first, Told::of(&["a", "b"], &[]));
    scene.write("2.yaml", &pod("c"));
    assert_eq!(scene.next().await, Told::of(&["c"], &[]));
    scene.write("1.yaml", &(pod("a") + &labelled("b", "two") + &pod("d")));
    assert_eq!(scene.next().await, Told::of(&["b", "d"], &[]));
    scene.write("1.yaml", &pod("d"));
    assert_eq!(scene.next().await, Told::of(&[], &["a", "b"]));
    fs::remove_file(scene.path("2.yaml")).unwrap();
    assert_eq!(scene.next().await, Told::of(&[], &["c"]));
    fs::rename(scene.path("1.yaml"), scene.path("1.yaml.off")).unwrap();
    assert_eq!(scene.next().await, Told::of(&[], &["d"]));
}

#[tokio::test]
async fn a_file_that_moves_within_the_folder_changes_nothing() {
    let (mut scene, _) = Scene::with(&[("1.yaml", pod("a"))]).await;
    fs::rename(scene.path("1.yaml"), scene.path("2.yaml")).unwrap();
    scene.write("3.yaml", &pod("b"));
    assert_eq!(scene.next().await, Told::of(&["b"], &[]));
}

#[tokio::test]
async fn half_a_file_deletes_nothing() {
    use std::io::Write as _;
    let whole = pod("a") + &pod("b");
    let (mut scene, _) = Scene::with(&[("1.yaml", whole.clone()), ("2.yaml", pod("c"))]).await;
    let mut file = fs::File::create(scene.path("1.yaml")).unwrap();
    file.write_all(pod("a").as_bytes()).unwrap();
    file.flush().unwrap();
    // Something else happens while the writer is not done.
    scene.write("3.yaml", &pod("d"));
    assert_eq!(scene.next().await, Told::of(&["d"], &[]));
    file.write_all(pod("b").as_bytes()).unwrap();
    file.write_all(pod("e").as_bytes()).unwrap();
    drop(file);
    assert_eq!(scene.next().await, Told::of(&["e"], &[]));
}

#[tokio::test]
async fn a_writer_that_pauses_takes_nothing_away_before_it_closes() {
    use std::io::Write as _;
    let whole = pod("a") + &pod("b");
    let (mut scene, _) = Scene::with(&[("1.yaml", whole)]).await;
    let mut file = fs::File::create(scene.path("1.yaml")).unwrap();
    file.write_all((labelled("a", "two") + &pod("c")).as_bytes()).unwrap();
    file.flush().unwrap();
    // Longer than a writer is waited for: what is there is taken.
    let told = scene.next().await;
    assert_eq!((told.apply, told.delete), (vec!["a".to_owned(), "c".to_owned()], vec![]));
    assert!(told.wrong[0].contains("still open for writing; 1 objects"), "{:?}", told.wrong);
    drop(file);
    assert_eq!(scene.next().await, Told::of(&[], &["b"]));
}

#[tokio::test]
async fn a_new_object_with_an_invalid_part_is_there_without_it() {
    let bad = "---\napiVersion: v1\nkind: Pod\nmetadata: {name: a, labels: {v: one, w: []}}\n";
    let (scene, first) = Scene::with(&[("1.yaml", bad.to_owned())]).await;
    assert_eq!(first.apply, ["a"]);
    assert!(first.wrong[0].contains("metadata.labels.w"), "{:?}", first.wrong);
    drop(scene);
}

#[tokio::test]
async fn what_becomes_unreadable_stays_and_is_told() {
    let (mut scene, _) = Scene::with(&[("1.yaml", pod("a"))]).await;
    for broken in ["a: [", "a: \u{0}"] {
        scene.write("1.yaml", broken);
        let told = scene.next().await;
        assert_eq!((told.apply, told.delete), (vec![], vec![]));
        assert!(
            told.wrong[0].starts_with("1.yaml") && told.wrong[0].contains("previous objects stay"),
            "{:?}",
            told.wrong
        );
    }
    scene.write("1.yaml", &pod("a"));
    assert_eq!(scene.next().await, Told::of(&[], &[]), "mended");
}

/// A daemon that starts over a file which another one has read before it was broken must not judge pods without it.
#[tokio::test]
async fn a_start_over_a_file_that_cannot_be_read_puts_nothing_in_force_until_it_can() {
    let files = [("1.yaml", pod("a")), ("2.yaml", "b: [".to_owned())];
    let (mut scene, first) = Scene::with(&files).await;
    assert_eq!((first.apply, first.complete), (vec![], false));
    assert!(first.wrong[0].contains("nothing of the folder is in force"), "{:?}", first.wrong);
    scene.write("3.yaml", "c: [");
    let told = scene.next().await;
    assert_eq!((told.apply, told.wrong.len(), told.complete), (vec![], 2, false));
    fs::remove_file(scene.path("3.yaml")).unwrap();
    assert_eq!(scene.next().await.wrong.len(), 1);
    scene.write("2.yaml", &pod("b"));
    let told = scene.next().await;
    assert_eq!((told.apply, told.complete), (vec!["a".to_owned(), "b".to_owned()], true));
    // From now on a broken file takes nothing from the others.
    scene.write("4.yaml", "d: [");
    let told = scene.next().await;
    assert!(told.complete && told.wrong[0].contains("none of its objects is known"));
}

#[tokio::test]
async fn a_folder_that_cannot_be_watched_ends_nothing() {
    let mut batches = watch(Path::new("not\0a path")).unwrap();
    assert!(batches.try_recv().is_err());
}

#[tokio::test]
async fn an_object_that_becomes_invalid_stays_as_it_was() {
    let (mut scene, _) = Scene::with(&[("1.yaml", pod("a") + &pod("b"))]).await;
    scene.write("1.yaml", &(labelled("a", "[]") + &labelled("b", "two")));
    let told = scene.next().await;
    assert_eq!((told.apply, told.delete), (vec!["b".to_owned()], vec![]));
    assert!(
        told.wrong.iter().any(|wrong| wrong.contains("Pod default/a: its previous version stays"))
    );
}

#[tokio::test]
async fn when_the_first_of_two_definitions_goes_the_other_is_applied() {
    let files = [("1.yaml", pod("a")), ("2.yaml", labelled("a", "two"))];
    let (mut scene, first) = Scene::with(&files).await;
    assert_eq!((first.apply.len(), first.wrong.len()), (1, 1));
    fs::remove_file(scene.path("1.yaml")).unwrap();
    assert_eq!(scene.next().await, Told::of(&["a"], &[]));
}

#[tokio::test]
async fn a_folder_may_come_late_go_and_come_again() {
    let (mut scene, first) = Scene::over(tempfile::tempdir().unwrap()).await;
    assert!(!first.complete && first.apply.is_empty() && first.wrong.len() == 1, "{first:?}");
    let fresh = scene.dir.path().join("fresh-folder");
    fs::create_dir(&fresh).unwrap();
    fs::write(fresh.join("1.yaml"), pod("a")).unwrap();
    fs::rename(&fresh, scene.dir.path().join("m")).unwrap();
    assert_eq!(scene.next().await, Told::of(&["a"], &[]));

    fs::rename(scene.dir.path().join("m"), &fresh).unwrap();
    let gone = scene.next().await;
    assert!(gone.delete.is_empty() && gone.wrong[0].contains("stays in force"), "{gone:?}");

    fs::create_dir(scene.dir.path().join("m")).unwrap();
    scene.write("1.yaml", &pod("b"));
    scene.until(["a".to_owned()].into(), &["b"]).await;
}

#[tokio::test]
async fn a_folder_may_be_made_with_those_above_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("some/where/m");
    let mut batches = watch(&path).unwrap();
    assert!(!batches.recv().await.unwrap().complete);
    fs::create_dir_all(&path).unwrap();
    fs::write(path.join("1.yaml"), pod("a")).unwrap();
    let mut scene = Scene { dir, batches };
    scene.until(BTreeSet::new(), &["a"]).await;
}

#[tokio::test]
async fn a_configmaps_switch_of_links_is_seen() {
    use std::os::unix::fs::symlink;
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("m");
    for (version, name) in [("..1", "a"), ("..2", "b")] {
        fs::create_dir_all(folder.join(version)).unwrap();
        fs::write(folder.join(version).join("p.yaml"), pod(name)).unwrap();
    }
    symlink("..1", folder.join("..data")).unwrap();
    symlink("..data/p.yaml", folder.join("p.yaml")).unwrap();
    let (mut scene, first) = Scene::over(dir).await;
    assert_eq!(first, Told::of(&["a"], &[]));
    symlink("..2", scene.path("..data_tmp")).unwrap();
    fs::rename(scene.path("..data_tmp"), scene.path("..data")).unwrap();
    assert_eq!(scene.next().await, Told::of(&["b"], &["a"]));
}

#[tokio::test]
async fn a_folder_that_is_a_link_may_be_switched() {
    use std::os::unix::fs::symlink;
    let dir = tempfile::tempdir().unwrap();
    for (version, name) in [("v1", "a"), ("v2", "b")] {
        fs::create_dir(dir.path().join(version)).unwrap();
        fs::write(dir.path().join(version).join("p.yaml"), pod(name)).unwrap();
    }
    symlink("v1", dir.path().join("m")).unwrap();
    let (mut scene, _) = Scene::over(dir).await;
    symlink("v2", scene.dir.path().join("next")).unwrap();
    fs::rename(scene.dir.path().join("next"), scene.dir.path().join("m")).unwrap();
    assert_eq!(scene.next().await, Told::of(&["b"], &["a"]));
}

#[tokio::test]
async fn a_thousand_files_at_once_arrive() {
    let (mut scene, _) = Scene::with(&[]).await;
    let names: Vec<String> = (0..1000).map(|number| format!("p{number}")).collect();
    for name in &names {
        fs::write(scene.path(&format!("{name}.yaml")), pod(name)).unwrap();
    }
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    scene.until(BTreeSet::new(), &names).await;
}

#[tokio::test]
async fn nobody_listens_and_the_task_ends() {
    let (scene, _) = Scene::with(&[]).await;
    drop(scene);
    let runtime = tokio::runtime::Handle::current().metrics();
    while runtime.num_alive_tasks() > 0 {
        task::yield_now().await;
    }
}

#[tokio::test]
async fn a_link_to_nothing_is_said_and_takes_no_policy_away() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("m")).unwrap();
    fs::write(dir.path().join("target"), pod("a")).unwrap();
    for (link, target) in [("a.yaml", "target"), ("b.yaml", "nowhere")] {
        std::os::unix::fs::symlink(dir.path().join(target), dir.path().join("m").join(link))
            .unwrap();
    }
    let (mut scene, told) = Scene::over(dir).await;
    assert_eq!((told.apply, told.complete), (vec!["a".to_owned()], true));
    let nothing = "b.yaml: is a symbolic link to what is not there; passed over";
    assert_eq!(told.wrong, [nothing]);
    fs::remove_file(scene.dir.path().join("target")).unwrap();
    // What is outside of the folder tells nothing: something in it has to happen.
    scene.write("c.yaml", &pod("c"));
    let told = scene.next().await;
    assert_eq!((told.apply, told.delete), (vec!["c".to_owned()], Vec::new()));
    let kept =
        "a.yaml: is a symbolic link to what is not there; its previous objects stay in force";
    assert_eq!(told.wrong, [kept, nothing]);
    fs::remove_file(scene.path("a.yaml")).unwrap();
    assert_eq!(scene.next().await.delete, ["a"]);
}
