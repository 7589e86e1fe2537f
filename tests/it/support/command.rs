//! The `courtier` binary, run as people and scripts run it.

use std::process::{Output, Stdio};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::{Child, Command},
    time::timeout,
};

use crate::harness::PATIENCE;

/// The binary, untouched by the environment of the test run.
pub fn courtier(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_courtier"));
    command.env_clear().args(arguments).kill_on_drop(true);
    command
}

/// Runs it to its end, with this on its standard input.
pub async fn run(mut command: Command, input: &[u8]) -> Output {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().expect("started");
    let mut stdin = child.stdin.take().expect("piped");
    // A command that does not read its input may be gone already.
    let _ = stdin.write_all(input).await;
    drop(stdin);
    let ended = timeout(PATIENCE, child.wait_with_output()).await;
    ended.expect("it ends").expect("it ran")
}

/// The next line on its standard output.
pub async fn line(child: &mut Child) -> String {
    let stdout = child.stdout.as_mut().expect("piped");
    let mut line = Vec::new();
    let reading = async {
        loop {
            match stdout.read_u8().await.expect("open") {
                b'\n' => return,
                byte => line.push(byte),
            }
        }
    };
    timeout(PATIENCE, reading).await.expect("a line comes");
    String::from_utf8(line).expect("text")
}

pub async fn ended(child: Child) -> Output {
    let ended = timeout(PATIENCE, child.wait_with_output()).await;
    ended.expect("it ends").expect("it ran")
}

/// Ctrl-C.
pub async fn interrupt(child: &Child) {
    let id = child.id().expect("it runs").to_string();
    let sent = Command::new("kill").args(["-INT", &id]).status().await;
    assert!(sent.expect("kill runs").success());
}

pub fn code(output: &Output) -> i32 {
    output.status.code().expect("it was not killed")
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("text")
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("text")
}

pub fn json_lines(output: &Output) -> Vec<Value> {
    let text = stdout(output);
    let lines = text.lines();
    lines
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect()
}
