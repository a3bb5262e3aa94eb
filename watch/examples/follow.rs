//! Prints what the cluster's API server tells, as the node of that name hears it:
//! `KUBECONFIG=… cargo run -p veni-watch --example follow NODE`.

use std::time::Instant;

use tokio::runtime;
use veni_watch::{Access, Settings, start};

#[expect(clippy::print_stdout, reason = "printing is what it is for")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let node = std::env::args().nth(1).ok_or("which node?")?;
    let access = Access::from_env().ok_or("KUBECONFIG is not set")?;
    let since = Instant::now();
    let mut watch = start(access, &node, Settings::default())?;
    runtime::Builder::new_current_thread().build()?.block_on(async move {
        loop {
            tokio::select! {
                batch = watch.batches.recv() => {
                    let Some(batch) = batch else { return };
                    let apply = batch.apply.iter().map(|object| object.key().to_string());
                    let shown: Vec<String> = apply.take(5).collect();
                    println!(
                        "{:?} complete={} apply={} {shown:?} delete={:?}",
                        since.elapsed(), batch.complete, batch.apply.len(), batch.delete
                    );
                    for wrong in batch.diagnostics {
                        println!("  {} {}: {}", wrong.object, wrong.field, wrong.message);
                    }
                }
                changed = watch.configuration.changed() => {
                    if changed.is_err() { return }
                    println!("{:?} {:?}", since.elapsed(), watch.configuration.borrow_and_update());
                }
            }
        }
    });
    Ok(())
}
