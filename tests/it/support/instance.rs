//! A server of one test's own, to be broken at will; by `scripts/rabbitmq` or `scripts/database`, which say what each verb does.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use uuid::Uuid;

const RABBITMQ: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/rabbitmq");
const DATABASE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/database");

/// Stops, and leaves nothing behind, when it is dropped or when the test's process ends in whatever way.
pub struct Instance {
    script: &'static str,
    dir: PathBuf,
    pub url: String,
    /// Stops the server at the end of its input, of which this process holds the other end.
    keeper: Child,
}

impl Instance {
    /// A fresh RabbitMQ that runs.
    pub async fn start() -> Self {
        Self::start_with(|_| String::new()).await
    }

    /// A fresh one, with more configuration; files that it names may be put into its folder.
    pub async fn start_with(configuration: impl FnOnce(&Path) -> String) -> Self {
        Self::configured(configuration, &[]).await
    }

    /// A fresh one with its management API.
    pub async fn start_managed() -> Self {
        Self::start_managed_with(|_| String::new()).await
    }

    /// A fresh one with its management API and more configuration.
    pub async fn start_managed_with(configuration: impl FnOnce(&Path) -> String) -> Self {
        Self::configured(configuration, &["--management"]).await
    }

    async fn configured(configuration: impl FnOnce(&Path) -> String, arguments: &[&str]) -> Self {
        let mut instance = Self::prepare(RABBITMQ);
        let configuration = configuration(&instance.dir);
        std::fs::write(instance.dir.join("extra.conf"), configuration).expect("it is writable");
        instance.run("start", arguments).await;
        instance.url = instance.run("url", &[]).await.trim().to_owned();
        instance
    }

    /// Where its management API is.
    pub fn management_port(&self) -> u16 {
        let env = std::fs::read_to_string(self.dir.join("env")).expect("it runs");
        let line = env.lines().find_map(|line| {
            line.trim_start_matches("export ")
                .strip_prefix("COURTIER_RABBITMQ_MANAGEMENT_PORT=")
        });
        let port = line.expect("it has one").trim_matches(['\'', '"']);
        port.parse().expect("a port")
    }

    /// A fresh database server that runs: `mariadb` or `postgres`.
    pub async fn database(kind: &str) -> Self {
        let mut instance = Self::prepare(DATABASE);
        let mut start = Command::new(DATABASE);
        start.args(["start", kind]).arg(&instance.dir);
        output(start).await;
        instance.url = instance.run("url", &[]).await.trim().to_owned();
        instance
    }

    fn prepare(script: &'static str) -> Self {
        let dir = std::env::temp_dir().join(format!("courtier-it-{}", Uuid::now_v7().simple()));
        std::fs::create_dir(&dir).expect("a fresh folder");
        let keeper = Command::new("bash")
            .args([
                "-c",
                "trap '' INT TERM HUP; read -r _; \"$0\" stop \"$1\"; rm -rf \"$1\"",
                script,
            ])
            .arg(&dir)
            .stdin(Stdio::piped())
            .spawn()
            .expect("bash runs");
        Self {
            script,
            dir,
            url: String::new(),
            keeper,
        }
    }

    /// Where it keeps its files, until it is dropped.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Stops it; [`restart`](Self::restart) starts it again with its data.
    pub async fn stop(&self) {
        self.run("stop", &[]).await;
    }

    /// Ends it as a crash would.
    pub async fn kill(&self) {
        self.run("kill", &[]).await;
    }

    /// Stops it if it runs, and starts it on the same port with the same data.
    pub async fn restart(&self) {
        self.run("restart", &[]).await;
    }

    /// Lets it hang, sockets open, until [`resume`](Self::resume).
    pub async fn pause(&self) {
        self.run("pause", &[]).await;
    }

    pub async fn resume(&self) {
        self.run("resume", &[]).await;
    }

    /// Raises the memory alarm: publishers are blocked until [`unblock`](Self::unblock).
    pub async fn block(&self) {
        self.run("block", &[]).await;
    }

    pub async fn unblock(&self) {
        self.run("unblock", &[]).await;
    }

    /// `rabbitmqctl`, and what it prints.
    pub async fn ctl(&self, args: &[&str]) -> String {
        self.run("ctl", args).await
    }

    /// Puts what was declared so far on disk. RabbitMQ 3.10 keeps the names of new quorum queues in a file that it writes half a
    /// second later (`ra_directory`, `auto_save`); a queue whose name is missing after a crash comes back empty and unusable.
    /// RabbitMQ 4.3 has no Mnesia any more; what it keeps its declarations in is on disk when they are answered.
    pub async fn settle(&self) {
        let sync =
            "case mnesia:system_info(is_running) of yes -> ok = mnesia:sync_log(); no -> ok end,
                    [ok = dets:sync(Table) || Table <- dets:all()].";
        self.run("ctl", &["-q", "eval", sync]).await;
    }

    /// Waits until these quorum queues hold nothing, neither ready nor with a consumer. The broker itself does the waiting:
    /// every question from outside starts an Erlang of its own.
    pub async fn emptied(&self, queues: &[&str]) {
        let wait = "Wait = fun(_, 0) -> Count();
                              (Again, N) -> case Count() of
                                                0 -> 0;
                                                _ -> timer:sleep(100), Again(Again, N - 1)
                                            end
                           end,
                    Wait(Wait, 600).";
        if self.count(queues, wait).await == 0 {
            return;
        }
        let mut left = Vec::new();
        for queue in queues {
            left.push((queue, self.messages(queue).await));
        }
        left.retain(|(_, count)| *count > 0);
        let consumers = [
            "-q",
            "list_consumers",
            "queue_name",
            "prefetch_count",
            "active",
        ];
        let consumers = self.ctl(&consumers).await;
        assert!(
            left.is_empty(),
            "left after a minute: {left:?}; consumers: {consumers}"
        );
    }

    /// How many messages a quorum queue holds, those included that a consumer has.
    pub async fn messages(&self, queue: &str) -> u64 {
        self.count(&[queue], "Count().").await
    }

    /// Evaluates Erlang that calls `Count`: how many messages these queues hold. The queues themselves are asked, because what
    /// `list_queues` shows of them is seconds old. RabbitMQ 4.3 takes the question by its name only.
    async fn count(&self, queues: &[&str], expression: &str) -> u64 {
        let names: Vec<_> = queues
            .iter()
            .map(|queue| format!("<<\"{queue}\">>"))
            .collect();
        let ask = format!(
            "Total = fun(Name) ->
                 {{ok, Queue}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<\"/\">>, queue, Name)),
                 Pid = amqqueue:get_pid(Queue),
                 Told = try ra:leader_query(Pid, fun rabbit_fifo:query_messages_total/1)
                        catch error:function_clause -> ra:leader_query(Pid, {{rabbit_fifo, query_messages_total, []}})
                        end,
                 {{ok, {{_, N}}, _}} = Told,
                 N
             end,
             Count = fun() -> lists:sum([Total(Name) || Name <- [{}]]) end,
             {expression}",
            names.join(", ")
        );
        let answer = self
            .run("ctl", &["-q", "--timeout", "120", "eval", &ask])
            .await;
        answer
            .trim()
            .parse()
            .unwrap_or_else(|_| panic!("not a number: {answer}"))
    }

    async fn run(&self, verb: &str, args: &[&str]) -> String {
        let mut command = Command::new(self.script);
        command.arg(verb).arg(&self.dir).args(args);
        output(command).await
    }
}

/// What a command that succeeds prints.
async fn output(mut command: Command) -> String {
    let called = format!("{command:?}");
    let output = tokio::task::spawn_blocking(move || command.output()).await;
    let output = output.expect("it does not panic").expect("the script runs");
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{called}: {out}{err}");
    out.into_owned()
}

impl Drop for Instance {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}

/// How often a trial kills each server.
pub fn crashes() -> u32 {
    std::env::var("COURTIER_CRASHES").map_or(20, |count| count.parse().expect("a number"))
}
