//! A private Redis or Valkey.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use secrecy::ExposeSecret;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::directory::{Directory, create_private, percent_encoded, write_private};
use super::identity::{Identity, Product, Version};
use super::launch::Launch;
use super::process::Process;
use super::programs::{self, Program, Wanted};
use super::{Options, free_port};

/// How long it may take to read the data of an earlier run.
const START_PATIENCE: Duration = Duration::from_mins(1);
const STOP_PATIENCE: Duration = Duration::from_secs(10);

/// A running private Redis or Valkey, where an answered write is a write on disk.
pub struct Redis {
    launch: Launch,
    process: Process,
    identity: Identity,
    port: Option<u16>,
    directory: Arc<Directory>,
}

/// Finds a program that [`Redis::launch`] can start.
pub(super) async fn find(options: &Options) -> anyhow::Result<Program> {
    let wanted = Wanted {
        given: options.redis_server.as_deref(),
        names: &["redis-server", "valkey-server"],
        products: &[Product::Redis, Product::Valkey],
        advice: "install the Debian package redis-server",
    };
    programs::find(&wanted).await
}

impl Redis {
    /// Starts a Redis alone on a data directory, and returns when it answers.
    ///
    /// # Errors
    /// As for [`super::Servers::start`].
    pub async fn start(data_dir: &Path, options: &Options) -> anyhow::Result<Self> {
        let program = find(options).await?;
        Self::launch(Arc::new(Directory::open(data_dir)?), program, options).await
    }

    pub(super) async fn launch(
        directory: Arc<Directory>,
        program: Program,
        options: &Options,
    ) -> anyhow::Result<Self> {
        let identity = program.identity;
        let data = prepare(&directory, identity)?;
        let port = options.tcp.then(free_port).transpose()?;
        let config = directory.run().join("redis.conf");
        write_private(&config, &configuration(&directory, &data, port))?;
        let launch = Launch {
            name: "redis",
            program: program.path,
            arguments: vec![config.clone().into()],
            run: directory.run(),
            data,
            mark: config,
            stop_patience: STOP_PATIENCE,
        };
        let process = ready(&launch, &directory).await?;
        tracing::info!(server = %identity, pid = process.pid(), "the private Redis answers");
        Ok(Self { launch, process, identity, port, directory })
    }

    /// Its address, on a unix socket and with the password.
    #[must_use]
    pub fn url(&self) -> String {
        let socket = percent_encoded(&self.directory.redis_socket());
        format!("redis+unix://{socket}?pass={}", self.directory.password().expose_secret())
    }

    /// Its address on 127.0.0.1 with the password, if it was asked to listen there.
    #[must_use]
    pub fn tcp_url(&self) -> Option<String> {
        let password = self.directory.password().expose_secret();
        self.port.map(|port| format!("redis://:{password}@127.0.0.1:{port}/0"))
    }

    /// Its version.
    #[must_use]
    pub fn version(&self) -> Version {
        self.identity.version
    }

    /// Its process id, also after it has ended.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Waits until it ends although nobody stopped it, and says so with the end of its log.
    pub async fn ended(&mut self) -> anyhow::Error {
        self.process.ended().await
    }

    /// Kills it as a crash would, and waits until it is gone.
    ///
    /// # Errors
    /// When it can be neither signalled nor waited for.
    pub async fn kill(&mut self) -> anyhow::Result<()> {
        self.process.kill().await.map(drop)
    }

    /// Starts it again at the same addresses, killing it first if it still runs.
    ///
    /// # Errors
    /// As for [`Self::start`].
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        self.process.kill().await?;
        self.process = ready(&self.launch, &self.directory).await?;
        Ok(())
    }

    /// Stops it in order; kills it if that takes more than 10 s.
    ///
    /// # Errors
    /// When it can be neither signalled nor waited for.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.process.stop().await
    }
}

/// Checks, or begins, the record of who writes the data, and returns where it is.
fn prepare(directory: &Directory, identity: Identity) -> anyhow::Result<PathBuf> {
    let record = directory.path("redis/ENGINE");
    let data = directory.path("redis/data");
    if data.exists() {
        identity.check_record(&record)?;
    }
    write_private(&record, &format!("{identity}\n"))?;
    create_private(&data)?;
    Ok(data)
}

fn configuration(directory: &Directory, data: &Path, port: Option<u16>) -> String {
    format!(
        "daemonize no\n\
         bind 127.0.0.1\n\
         port {port}\n\
         unixsocket \"{socket}\"\n\
         unixsocketperm 700\n\
         requirepass {password}\n\
         dir \"{data}\"\n\
         appendonly yes\n\
         appendfsync always\n\
         save \"\"\n\
         maxmemory-policy noeviction\n",
        port = port.unwrap_or(0),
        socket = directory.redis_socket().display(),
        password = directory.password().expose_secret(),
        data = data.display(),
    )
}

async fn ready(launch: &Launch, directory: &Directory) -> anyhow::Result<Process> {
    let mut process = launch.start().await?;
    process.ready(START_PATIENCE, || answers(directory)).await?;
    Ok(process)
}

/// Whether the server takes commands: one that still reads its data answers otherwise.
async fn answers(directory: &Directory) -> bool {
    let ask = async {
        let mut stream = UnixStream::connect(directory.redis_socket()).await?;
        let password = directory.password().expose_secret();
        stream.write_all(format!("AUTH {password}\r\nPING\r\n").as_bytes()).await?;
        let mut answer = *b"+OK\r\n+PONG\r\n";
        answer.fill(0);
        stream.read_exact(&mut answer).await?;
        std::io::Result::Ok(&answer == b"+OK\r\n+PONG\r\n")
    };
    ask.await.unwrap_or(false)
}
