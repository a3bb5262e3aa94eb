//! The chart and what the documents do with it, by the real helm and without a cluster; what an API server says of it is
//! in `make e2e`'s part `chart`. Where helm is not built (hack/kubernetes.sh), the tier's table says that none of it was
//! checked.
#![expect(clippy::unwrap_used, reason = "a test fails where it unwraps")]
#![expect(clippy::print_stdout, reason = "the tier runner reads the note")]

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use veni_house_rules::root;

/// As in `make e2e`: set, what is rendered is kept instead of compared.
const BLESS: &str = "VENI_BLESS";

/// The programs of the documents' lines. helm renders what it would install, with the flags that only an upgrade has taken
/// off, once its help has shown that it knows them; the others do nothing.
const HELM: &str = r#"#!/bin/bash
command=$1; shift
if [ "$command" = get ]; then command="get $1"; shift; fi
known() { "$HELM" $command --help | /usr/bin/grep -qE -- "(^|[ ,])$1( |$)" || { echo "helm $command: no flag $1" >&2; exit 1; }; }
args=()
for arg; do
    case $arg in --*) known "${arg%%=*}" ;; esac
    case $arg in --install|--reset-then-reuse-values) ;; *) args+=("$arg") ;; esac
done
case $command in
    install|upgrade) "$HELM" template "${args[@]}" --kube-version 1.33 ;;
    template) "$HELM" template "${args[@]}" ;;
    get*) echo '{}' ;;
esac
"#;
const NOTHING: &str = "#!/bin/bash\n[ -t 0 ] || /usr/bin/cat > /dev/null\n";
const AWS: &str = "#!/bin/bash\necho 10.100.0.0/16\n";

fn helm() -> Option<PathBuf> {
    let own = || root().join(".tools/kubernetes");
    let dir = std::env::var_os("VENI_KUBERNETES_DIR").map_or_else(own, PathBuf::from);
    let helm = dir.join("bin/helm");
    if !helm.exists() {
        println!(
            "\nNOTE: helm is not built (hack/kubernetes.sh): the chart and the documents' helm lines are not checked"
        );
    }
    helm.exists().then_some(helm)
}

fn run(helm: &Path, args: &[&str]) -> Result<String, String> {
    let output = Command::new(helm).args(args).current_dir(root()).output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    if output.status.success() { Ok(String::from_utf8(output.stdout).unwrap()) } else { Err(told) }
}

fn template(helm: &Path, args: &[&str]) -> Result<String, String> {
    let how = ["template", "veni", "helm/veni", "--namespace=kube-system", "--kube-version=1.35.0"];
    run(helm, &[&how[..], args].concat())
}

/// Sets of values, `NAME.yaml`.
fn cases() -> Vec<PathBuf> {
    let files = fs::read_dir(root().join("e2e/chart")).unwrap().map(|file| file.unwrap().path());
    let is_case = |path: &PathBuf| !path.to_string_lossy().ends_with(".rendered.yaml");
    let cases: Vec<_> = files.filter(is_case).collect();
    assert!(!cases.is_empty());
    cases
}

#[test]
fn the_chart_lints_with_every_set_of_values() {
    let Some(helm) = helm() else { return };
    for case in cases() {
        let values = format!("--values={}", case.display());
        run(&helm, &["lint", "--strict", "--kube-version=1.35.0", "helm/veni", &values])
            .unwrap_or_else(|error| panic!("{}: {error}", case.display()));
    }
}

#[test]
fn the_chart_renders_what_is_kept() {
    let Some(helm) = helm() else { return };
    for case in cases() {
        let rendered = template(&helm, &[&format!("--values={}", case.display())]).unwrap();
        let kept = case.with_extension("rendered.yaml");
        if std::env::var_os(BLESS).is_some() {
            fs::write(&kept, &rendered).unwrap();
        }
        let expected = fs::read_to_string(&kept).unwrap_or_default();
        let first = rendered.lines().zip(expected.lines()).find(|(new, old)| new != old);
        assert!(
            rendered == expected,
            "{} differs, first {first:?}; {BLESS}=1 keeps what is rendered now, if it is meant",
            kept.display()
        );
    }
    // Of a definition that the cluster of `make e2e` does not have.
    let monitored = template(&helm, &["--set=podMonitor.create=true"]).unwrap();
    assert!(monitored.contains("kind: PodMonitor"));
}

#[test]
fn a_value_that_means_nothing_or_breaks_is_refused_with_what_to_do() {
    let Some(helm) = helm() else { return };
    let check = |value: &str, words: &str| {
        let error = template(&helm, &["--set", value]).expect_err(value);
        assert!(error.contains(words), "{value}: {error}");
    };
    check("env.DISABLE_INTROSPECTION=true", "the probes ask what it turns off");
    check("env.DISABLE_INTROSPECTION=1", "the probes ask what it turns off");
    check("env.INTROSPECTION_BIND_ADDRESS=127.0.0.1:9", "the probes ask 127.0.0.1:61679");
    check("controller.env.VENI_CONTROLLER_BIND=:9", "ask port 61680");
    check("enableNetworkPolicy=no", "enableNetworkPolicy");
    check("branchENICooldown=60", "there are no branch ENIs");
    check("enableWindowsIpam=true", "Windows nodes are not supported");
    check("minimumWindowsIPTarget=3", "Windows nodes are not supported");
    check("extraEnv[0].name=A", "put its variables under env");
    for taken in ["env.DISABLE_INTROSPECTION=false", "env.INTROSPECTION_BIND_ADDRESS=0.0.0.0:61679"]
    {
        template(&helm, &["--set", taken]).unwrap();
    }
}

#[test]
fn the_documents_helm_lines_render() {
    let Some(helm) = helm() else { return };
    let place = std::env::temp_dir().join(format!("veni-documents-{}", std::process::id()));
    let bin = place.join("bin");
    fs::create_dir_all(&bin).unwrap();
    symlink(root().join("helm"), place.join("helm")).unwrap();
    let programs = [("helm", HELM), ("aws", AWS), ("kubectl", NOTHING), ("venictl", NOTHING)];
    for (name, script) in programs {
        fs::write(bin.join(name), script).unwrap();
        fs::set_permissions(bin.join(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
    let mut ran = 0;
    for (document, block) in
        blocks().filter(|(_, block)| block.lines().any(|line| line.starts_with("helm ")))
    {
        let output = Command::new("/bin/bash")
            .args(["-euo", "pipefail", "-c", &block])
            .current_dir(&place)
            .env("PATH", &bin)
            .env("HELM", fs::canonicalize(&helm).unwrap())
            .envs(
                ["REGISTRY", "CLUSTER", "ACCOUNT", "NODE"].map(|name| (name, name.to_lowercase())),
            )
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}:\n{block}\n{told}", document.display());
        ran += 1;
    }
    fs::remove_dir_all(&place).unwrap();
    assert!(
        ran >= 4,
        "{ran} blocks with a helm line: installation, controller, upgrade, a node's way back"
    );
}

/// On EKS two of the four definitions are there before veni: to apply or to delete the folder takes them from AWS.
#[test]
fn no_document_applies_or_deletes_all_definitions_at_once() {
    let files = fs::read_dir(root().join("docs")).unwrap().map(|file| file.unwrap().path());
    let mut named = 0;
    for document in files.chain([root().join("README.md")]).filter(|path| path.is_file()) {
        let text = fs::read_to_string(&document).unwrap();
        // As one reads it: a command goes on in the next line.
        let words: Vec<&str> = text.split(|c: char| c.is_whitespace() || c == '`').collect();
        for pair in words.windows(2).filter(|pair| matches!(pair[0], "-f" | "--filename")) {
            let path = pair[1].trim_end_matches(['/', ',', ';', '.']);
            assert_ne!(path, "helm/veni/crds", "{}: name the files", document.display());
            named += usize::from(path.starts_with("helm/veni/crds/"));
        }
    }
    assert!(named >= 2, "{named}: the way to newer definitions is told");
}

/// The shell commands of the documents, a block each.
fn blocks() -> impl Iterator<Item = (PathBuf, String)> {
    let files = fs::read_dir(root().join("docs")).unwrap().map(|file| file.unwrap().path());
    let documents = files.chain([root().join("README.md")]).filter(|path| path.is_file());
    let markdown = documents.filter(|path| path.extension().is_some_and(|it| it == "md"));
    markdown.flat_map(|path| {
        let text = fs::read_to_string(&path).unwrap();
        let blocks: Vec<_> = text
            .split("\n```sh\n")
            .skip(1)
            .map(|rest| (path.clone(), rest.split("\n```").next().unwrap_or_default().to_owned()))
            .collect();
        blocks
    })
}
