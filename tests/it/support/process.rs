//! The gateway as it is run: the real program, in a process of its own that can be killed.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tonic::transport::{Channel, Endpoint};
use tonic_health::{
    ServingStatus,
    pb::{HealthCheckRequest, health_client::HealthClient},
};

use crate::{harness::eventually, instance::Instance, load::TOPOLOGY, patient::Patient};

/// Killed when it is dropped. Its log is in the broker's directory.
pub struct Process {
    port: u16,
    settings: Vec<(String, String)>,
    log: PathBuf,
    /// What runs the program.
    through: Vec<String>,
    child: Child,
}

/// Runs the program with a file system of 2 MiB of its own as DATA_DIR, which is gone with the process.
const ON_A_SMALL_DISK: &[&str] = &[
    "unshare",
    "--mount",
    "sh",
    "-c",
    "mount -t tmpfs -o size=2m small \"$DATA_DIR\" && exec \"$0\" \"$@\"",
];

impl Process {
    /// Starts the gateway on a broker, with more settings, and waits until its port is open.
    pub async fn start(instance: &Instance, settings: &[(&str, &str)]) -> Self {
        // The caller's own settings go before.
        let url = [("RABBITMQ_URL", instance.url.as_str())];
        Self::start_in(instance.dir(), &[&url, settings].concat()).await
    }

    /// Starts it with these settings alone. What it writes is in `dir`.
    pub async fn start_in(dir: &Path, settings: &[(&str, &str)]) -> Self {
        Self::start_through(&[], dir, settings).await
    }

    /// The same, with very little room for its data. Takes the right to mount.
    pub async fn on_a_small_disk(dir: &Path, settings: &[(&str, &str)]) -> Self {
        Self::start_through(ON_A_SMALL_DISK, dir, settings).await
    }

    async fn start_through(through: &[&str], dir: &Path, settings: &[(&str, &str)]) -> Self {
        let port = free_port();
        let data = dir.join(format!("data-{port}"));
        let data = data.to_str().expect("a plain path");
        let settings: Vec<_> = [("DATA_DIR", data)]
            .iter()
            .chain(settings)
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        let log = dir.join(format!("gateway-{port}.log"));
        std::fs::create_dir_all(data).expect("a place to write");
        let through: Vec<String> = through.iter().map(|word| (*word).to_owned()).collect();
        let child = spawn(&through, port, &settings, &log);
        let process = Self {
            port,
            settings,
            log,
            through,
            child,
        };
        process.listening().await;
        process
    }

    /// The same, with so many descriptors at the most, and `soft` of them before it asks for more.
    pub async fn start_with_descriptors(
        dir: &Path,
        settings: &[(&str, &str)],
        soft: u32,
        hard: u32,
    ) -> Self {
        let limited = format!("ulimit -Sn {soft} && ulimit -Hn {hard} && exec \"$0\" \"$@\"");
        Self::start_through(&["bash", "-c", &limited], dir, settings).await
    }

    /// How many descriptors it has open.
    pub fn descriptors(&self) -> usize {
        let open = fs::read_dir(format!("/proc/{}/fd", self.child.id()));
        open.expect("it runs").count()
    }

    /// On a broker that has what a [load](crate::load) needs.
    pub async fn with_load(instance: &Instance, settings: &[(&str, &str)]) -> Self {
        let gateway = Self::with_topology(instance, settings).await;
        gateway.health([true; 3]).await;
        instance.settle().await;
        gateway
    }

    /// Declares what a [load](crate::load) needs when it finds its broker.
    pub async fn with_topology(instance: &Instance, settings: &[(&str, &str)]) -> Self {
        let topology = instance.dir().join("topology.toml");
        fs::write(&topology, TOPOLOGY).expect("a place to write");
        let topology = topology.to_str().expect("a plain path");
        let mut settings = settings.to_vec();
        settings.push(("TOPOLOGY_FILE", topology));
        Self::start(instance, &settings).await
    }

    /// Ends it as a crash would.
    pub fn kill(&mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it ends");
    }

    /// Lets it hang, sockets open, until [`resume`](Self::resume).
    pub fn pause(&self) {
        self.signal("STOP");
    }

    pub fn resume(&self) {
        self.signal("CONT");
    }

    /// Waits until it has ended by itself; its exit code.
    pub async fn ended(&mut self) -> Option<i32> {
        let mut status = None;
        eventually("the gateway ends", || {
            status = self.child.try_wait().expect("it was started");
            std::future::ready(status.is_some())
        })
        .await;
        status.and_then(|status| status.code())
    }

    /// Sends it a signal, such as `TERM`.
    pub fn signal(&self, name: &str) {
        let mut kill = Command::new("kill");
        kill.args(["-s", name, &self.child.id().to_string()]);
        assert!(kill.status().expect("a shell's tool").success());
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).expect("it is there")
    }

    /// Starts it again, on the same port.
    pub async fn restart(&mut self) {
        self.child = spawn(&self.through, self.port, &self.settings, &self.log);
        self.listening().await;
    }

    async fn listening(&self) {
        eventually("the gateway listens", || async {
            TcpStream::connect(("127.0.0.1", self.port)).await.is_ok()
        })
        .await;
    }

    /// Its DATA_DIR, as the process itself sees it.
    pub fn data(&self) -> PathBuf {
        let data = self.settings.iter().find(|(name, _)| name == "DATA_DIR");
        let (_, data) = data.expect("always set");
        PathBuf::from(format!("/proc/{}/root{data}", self.child.id()))
    }

    /// Its process's number.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Where it listens.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// A connection of one's own, made when it is used, and again after it broke.
    pub fn channel(&self) -> Channel {
        self.channels()()
    }

    /// Makes such connections.
    pub fn channels(&self) -> impl Fn() -> Channel + Send + Sync + 'static {
        let url = format!("http://127.0.0.1:{}", self.port);
        let endpoint = Endpoint::from_shared(url).expect("a valid URL");
        move || endpoint.connect_lazy()
    }

    /// A connection for calls whose deadline the gateway alone keeps.
    pub fn patient(&self) -> Patient {
        Patient::new(format!("127.0.0.1:{}", self.port))
    }

    /// What `/readyz` answers: the status line and the body.
    pub async fn readyz(&self) -> String {
        self.get("/readyz").await
    }

    /// The same of another path.
    pub async fn get(&self, path: &str) -> String {
        let answer = get(&self.address(), path).await;
        answer.expect("it answers text")
    }

    /// What `grpc.health.v1.Health` says of a service: of this API, or `""`.
    pub async fn serves(&self, service: &str) -> bool {
        let service = match service {
            "" => String::new(),
            name => format!("courtier.v1.{name}"),
        };
        let mut client = HealthClient::new(self.channel());
        let answer = client
            .check(HealthCheckRequest { service })
            .await
            .expect("health is answered");
        answer.into_inner().status == ServingStatus::Serving as i32
    }

    /// Waits until health says this of the whole, the publisher and the subscriber.
    pub async fn health(&self, expected: [bool; 3]) {
        eventually(&format!("health is {expected:?}"), || async {
            let [whole, publisher, subscriber] =
                ["", "Publisher", "Subscriber"].map(|service| self.serves(service));
            [whole.await, publisher.await, subscriber.await] == expected
        })
        .await;
    }

    /// How it ended; `None` while it runs.
    pub fn exit_status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("it was started")
    }

    /// A number of `/proc/PID/status`, such as `Threads`, or `VmRSS` in kB.
    pub fn status(&self, name: &str) -> u64 {
        let path = format!("/proc/{}/status", self.child.id());
        let status = fs::read_to_string(path).expect("it runs");
        let value = status
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let number = value.and_then(|value| value.split_whitespace().next());
        number
            .expect("the kernel says it")
            .parse()
            .expect("a number")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = fs::read_to_string(&self.log).unwrap_or_default();
            let lines: Vec<_> = log.lines().collect();
            eprintln!(
                "the end of the gateway's log:\n{}",
                lines[lines.len().saturating_sub(40)..].join("\n")
            );
        }
    }
}

/// What a path of a gateway answers over plain HTTP: the status line, the headers and the body.
pub async fn get(address: &str, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

fn spawn(through: &[String], port: u16, settings: &[(String, String)], log: &Path) -> Child {
    let log = File::options()
        .create(true)
        .append(true)
        .open(log)
        .expect("the directory exists");
    let program = env!("CARGO_BIN_EXE_courtier");
    // Under nohup, the tests' own signals are not to be ignored.
    let mut line = vec!["env", "--default-signal=HUP"];
    line.extend(through.iter().map(String::as_str));
    line.extend([program, "serve"]);
    Command::new(line[0])
        .args(&line[1..])
        .env_clear()
        .env("APP_PORT", port.to_string())
        .env("RUST_LOG", "courtier=debug")
        .envs(settings.iter().cloned())
        .stdout(log.try_clone().expect("another handle"))
        .stderr(log)
        .spawn()
        .expect("the gateway starts")
}

/// Below the range from which the kernel gives ports to clients: free also while the gateway is down, and a client that tries
/// it meanwhile is not connected to itself. Above the brokers' ports, below those of `rabbitmqctl`.
fn free_port() -> u16 {
    std::iter::repeat_with(|| fastrand::u16(29_000..30_000))
        .find(|port| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .expect("an endless search")
}
