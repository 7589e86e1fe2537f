//! `courtier doctor` and `courtier config`: what is wrong is named, with the setting to change and without its secrets.

use std::path::Path;

use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use crate::{
    command::{code, courtier, json_lines, run, stderr, stdout},
    harness::Gateway,
    instance::Instance,
};

/// The exit code and the findings.
async fn doctor(data: &Path, arguments: &[&str], settings: &[(&str, &str)]) -> (i32, Vec<Value>) {
    let mut command = courtier(&[&["doctor", "--output", "json"], arguments].concat());
    command
        .env("DATA_DIR", data)
        .env("APP_PORT", "1")
        .env("RABBITMQ_MANAGEMENT_PORT", "0")
        .envs(settings.iter().copied());
    let output = run(command, b"").await;
    (code(&output), json_lines(&output))
}

/// How a thing was found, and what is said of it.
fn of(findings: &[Value], what: &str) -> (String, String) {
    let found = findings.iter().find(|one| one["what"] == what);
    let found = found.unwrap_or_else(|| panic!("{what} is missing of {findings:?}"));
    let text = |name: &str| found[name].as_str().expect("text").to_owned();
    (text("state"), text("told"))
}

/// A port that answers everybody with this.
async fn answers(answer: &'static [u8]) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    tokio::spawn(async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            let mut hello = [0; 8];
            let _ = connection.read_exact(&mut hello).await;
            let _ = connection.write_all(answer).await;
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs RabbitMQ: run make test"]
async fn a_refused_user_and_a_missing_virtual_host_are_told_apart() {
    let url = std::env::var("COURTIER_TEST_AMQP_URL").expect("set by make test");
    let dir = TempDir::new().expect("a folder");
    let (start, rest) = url.split_once("://").expect("a URL");
    let (_, place) = rest.rsplit_once('@').expect("a user");
    let (place, _) = place.split_once('/').unwrap_or((place, ""));

    let wrong = format!("{start}://guest:not-this-one@{place}/%2f");
    let (exit, findings) = doctor(dir.path(), &[], &[("RABBITMQ_URL", &wrong)]).await;
    assert_eq!(exit, 1);
    let (state, told) = of(&findings, "broker");
    assert_eq!(state, "wrong");
    assert!(
        told.contains("RABBITMQ_PASSWORD") && told.contains(place),
        "{told}"
    );
    assert!(
        !told.contains("RABBITMQ_VHOST") && !told.contains("not-this-one"),
        "{told}"
    );

    let wrong = format!("{start}://guest:guest@{place}/not-there");
    let (_, findings) = doctor(dir.path(), &[], &[("RABBITMQ_URL", &wrong)]).await;
    let (state, told) = of(&findings, "broker");
    assert_eq!(state, "wrong");
    assert!(
        told.contains("RABBITMQ_VHOST") && !told.contains("RABBITMQ_PASSWORD"),
        "{told}"
    );

    let encrypted = format!("amqps://guest:guest@{place}/%2f");
    let (_, findings) = doctor(dir.path(), &[], &[("RABBITMQ_URL", &encrypted)]).await;
    let (state, told) = of(&findings, "TLS");
    assert_eq!(state, "wrong", "{told}");
    assert!(told.contains("without TLS"), "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_is_well_only_where_it_was_spoken() {
    let dir = TempDir::new().expect("a folder");
    let look = async |scheme: &str, port: u16| {
        let url = format!("{scheme}://me:secret-word@localhost:{port}/%2f");
        let (exit, findings) = doctor(dir.path(), &[], &[("RABBITMQ_URL", &url)]).await;
        assert_eq!(exit, 1, "{findings:?}");
        assert!(
            !findings
                .iter()
                .any(|one| one.to_string().contains("secret-word"))
        );
        of(&findings, "TLS")
    };
    // The version of AMQP that is spoken there; an alert of TLS; nothing that anybody knows.
    let plain = answers(b"AMQP\x00\x00\x09\x01").await;
    let encrypted = answers(&[21, 3, 3, 0, 2, 2, 10]).await;
    let other = answers(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
    let (state, told) = look("amqps", plain).await;
    assert!(
        state == "wrong" && told.contains("without TLS"),
        "{state}: {told}"
    );
    let (state, told) = look("amqp", encrypted).await;
    assert!(
        state == "wrong" && told.contains("amqps://"),
        "{state}: {told}"
    );
    let (state, told) = look("amqps", other).await;
    assert!(
        state == "wrong" && told.contains("RABBITMQ_CA_FILE"),
        "{state}: {told}"
    );
    let (state, told) = look("amqps", 1).await;
    assert_ne!(state, "ok", "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs RabbitMQ: run make test"]
async fn a_port_of_tls_is_recognised() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = free.local_addr().expect("bound").port();
    drop(free);
    let instance = Instance::start_with(|dir| {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]);
        let rcgen::CertifiedKey { cert, signing_key } = made.expect("a certificate");
        let file = |name: &str, content: String| {
            let path = dir.join(name);
            std::fs::write(&path, content).expect("the folder is writable");
            path.display().to_string()
        };
        let cert = file("cert.pem", cert.pem());
        let key = file("key.pem", signing_key.serialize_pem());
        format!(
            "listeners.ssl.1 = 127.0.0.1:{port}\n\
             ssl_options.cacertfile = {cert}\nssl_options.certfile = {cert}\nssl_options.keyfile = {key}\n"
        )
    })
    .await;
    let look = async |url: &str, settings: &[(&str, &str)]| {
        let url = [("RABBITMQ_URL", url)];
        let (_, findings) = doctor(instance.dir(), &[], &[&url, settings].concat()).await;
        of(&findings, "TLS")
    };
    let plain = format!("amqp://guest:guest@localhost:{port}/%2f");
    let (state, told) = look(&plain, &[]).await;
    assert!(
        state == "wrong" && told.contains("amqps://"),
        "{state}: {told}"
    );
    let encrypted = format!("amqps://guest:guest@localhost:{port}/%2f");
    let (state, told) = look(&encrypted, &[]).await;
    assert!(
        state == "wrong" && told.contains("RABBITMQ_CA_FILE"),
        "{state}: {told}"
    );
    let authority = instance.dir().join("cert.pem");
    let authority = authority.to_str().expect("a plain path");
    let (state, told) = look(&encrypted, &[("RABBITMQ_CA_FILE", authority)]).await;
    assert_eq!(state, "ok", "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_is_away_is_named_with_its_place_and_its_cause() {
    let dir = TempDir::new().expect("a folder");
    for kind in ["postgres", "mysql"] {
        let url = format!("{kind}://me:secret-word@127.0.0.1:1/none");
        let (exit, findings) = doctor(dir.path(), &[], &[("DATABASE_URL", &url)]).await;
        assert_eq!(exit, 1);
        let (state, told) = of(&findings, "database");
        assert_eq!(state, "wrong");
        assert!(
            told.contains("127.0.0.1:1") && told.contains("refused"),
            "{told}"
        );
        assert_eq!(told.matches("refused").count(), 1, "{told}");
        assert!(
            !told.contains("pool") && !told.contains("secret-word"),
            "{told}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_elsewhere_is_judged_by_what_it_tells() {
    let dir = TempDir::new().expect("a folder");
    let gateway = Gateway::embedded().await;
    // Nothing of this shell's can be used.
    let settings = [
        ("RABBITMQ_URL", "amqp://me:secret-word@127.0.0.1:1/%2f"),
        ("DATABASE_URL", "postgres://me:secret-word@127.0.0.1:1/none"),
        ("MESSAGE_TTL", "soon"),
    ];
    let there = ["--server", &gateway.address];
    let (exit, findings) = doctor(dir.path(), &there, &settings).await;
    let (state, told) = of(&findings, "looked at");
    assert!(state == "ok" && told.contains(&gateway.address), "{told}");
    assert_eq!(of(&findings, "gateway").0, "ok");
    assert_eq!(of(&findings, "publish link").0, "ok");
    assert_eq!(of(&findings, "broker").0, "warning");
    // It has none.
    assert_eq!(of(&findings, "database").0, "wrong");
    assert_eq!(exit, 1);
    assert!(!findings.iter().any(|one| one["what"] == "configuration"));

    let (exit, findings) = doctor(dir.path(), &["--server", "127.0.0.1:2"], &settings).await;
    assert_eq!((exit, of(&findings, "gateway").0), (1, "wrong".to_owned()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_used_is_refused_by_check_and_by_serve_without_its_secrets() {
    let dir = TempDir::new().expect("a folder");
    for (name, bad) in [
        ("DATABASE_URL", "mysql://me:secret/word@127.0.0.1:1/none"),
        ("DATABASE_URL", "postgres://me:secret#word@127.0.0.1:1/none"),
        ("DATABASE_URL", "postgres://me:1/secret@127.0.0.1:1/none"),
        (
            "DATABASE_URL",
            "postgres://me:secret-word@127.0.0.1:99999/none",
        ),
        ("RABBITMQ_URL", "amqp://me:secret/word@127.0.0.1:1/"),
        ("RABBITMQ_URL", "amqp:me:secret-word@127.0.0.1"),
        (
            "RABBITMQ_MANAGEMENT_URL",
            "http://me:secret/word@127.0.0.1:1/",
        ),
        (
            "OTEL_EXPORTER_OTLP_ENDPOINT",
            "ftp://me:secret-word@127.0.0.1:1",
        ),
        ("ALERT_WEBHOOK_URL", "http://me:secret/word@127.0.0.1:1/"),
        ("CORS_ORIGINS", "127.0.0.1:8080"),
        ("RUST_LOG", "courtier=loud"),
    ] {
        for arguments in [&["config", "check"][..], &["serve"]] {
            let mut command = courtier(arguments);
            command
                .env("DATA_DIR", dir.path())
                .env("APP_PORT", "0")
                .env("RABBITMQ_HOST", "127.0.0.1")
                .env(name, bad);
            let output = run(command, b"").await;
            assert_eq!(code(&output), 2, "{arguments:?} with {name}={bad}");
            let told = stderr(&output);
            assert!(told.contains(name), "{told}");
            assert!(!told.contains("secret"), "{told}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_password_is_printed() {
    for arguments in [&["config", "print"][..], &["config", "print", "--json"]] {
        let mut command = courtier(arguments);
        command.env(
            "OTEL_EXPORTER_OTLP_ENDPOINT",
            "http://me:secret-word@otel:4317",
        );
        let printed = stdout(&run(command, b"").await);
        assert!(printed.contains("otel:4317"), "{printed}");
        assert!(!printed.contains("secret-word"), "{printed}");
    }
}
