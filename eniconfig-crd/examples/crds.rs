//! Writes the CustomResourceDefinitions into the chart: `cargo run -p veni-eniconfig-crd --example crds`.

#![expect(clippy::disallowed_methods, reason = "the generator writes files; the crate does not")]

use std::{fs, path::Path};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../helm/veni/crds");
    fs::create_dir_all(&folder)?;
    for (file, definition) in veni_eniconfig_crd::definitions() {
        fs::write(folder.join(file), serde_saphyr::to_string(&definition)?)?;
    }
    Ok(())
}
