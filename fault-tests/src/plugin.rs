//! The plugin with a fault, executed as a runtime does.

use std::{
    io::Write as _,
    os::unix::process::ExitStatusExt as _,
    process::{Command, Output, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use veni_lab::{Node, runtime::Sandbox};

/// Executes `operation`; `fault` is the value of `VENI_FAULT`.
///
/// # Errors
/// When it cannot be started.
pub fn run(
    node: &Node,
    operation: &str,
    sandbox: &Sandbox,
    previous: Option<Value>,
    fault: Option<&str>,
) -> Result<Output> {
    let runtime = &node.runtime;
    let input = runtime.configuration(previous).to_string();
    let mut command = Command::new(&runtime.plugin);
    command.env_clear().envs(runtime.environment(operation, sandbox));
    command.envs(fault.map(|fault| ("VENI_FAULT", fault)));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = node.namespace.run(|| {
        Ok((|| {
            let mut child = command.spawn()?;
            if let Some(mut stdin) = child.stdin.take() {
                // One that was killed early reads nothing.
                drop(stdin.write_all(input.as_bytes()));
            }
            child.wait_with_output()
        })())
    })?;
    output.context("running the plugin")
}

/// Executes `operation` until the plugin is killed at `point`.
///
/// # Errors
/// When the point is not reached.
pub fn killed_at(
    node: &Node,
    point: &str,
    operation: &str,
    sandbox: &Sandbox,
    previous: Option<Value>,
) -> Result<()> {
    let output = run(node, operation, sandbox, previous, Some(&format!("{point}:kill")))?;
    ensure!(output.status.signal() == Some(9), "{point} was not reached: {output:?}");
    Ok(())
}

/// The CNI error that the plugin printed: its code, and message with details.
///
/// # Errors
/// When it succeeded, or printed none.
pub fn refusal(output: &Output) -> Result<(u64, String)> {
    ensure!(!output.status.success(), "the plugin succeeded: {output:?}");
    let error: Value = serde_json::from_slice(&output.stdout)
        .with_context(|| format!("no CNI error: {output:?}"))?;
    let text = |key: &str| error[key].as_str().unwrap_or_default();
    Ok((
        error["code"].as_u64().context("no code")?,
        format!("{}; {}", text("msg"), text("details")),
    ))
}
