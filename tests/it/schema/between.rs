//! What stands between `heartbeat migrate` and its server: sees each statement of a migration, and may
//! stop it.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};

/// A statement that waits to be let through.
pub struct Held {
    /// Its text.
    pub statement: String,
    /// Lets it through; answers once the server has answered.
    go_on: oneshot::Sender<oneshot::Sender<()>>,
}

impl Held {
    /// Lets it through, and waits until the server has answered; that answer is passed on as well.
    pub async fn pass(self) {
        let (done, answered) = oneshot::channel();
        if self.go_on.send(done).is_ok() {
            answered.await.ok();
        }
    }
}

/// A socket that forwards to a server, one statement of a migration at a time.
pub struct Between {
    /// Where it listens.
    pub socket: PathBuf,
    held: mpsc::UnboundedReceiver<Held>,
}

impl Between {
    /// In front of the socket of a server.
    pub fn start(server: &Path, socket: PathBuf) -> Self {
        std::fs::remove_file(&socket).ok();
        let listener = UnixListener::bind(&socket).unwrap();
        let (sender, held) = mpsc::unbounded_channel();
        let server = server.to_owned();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = UnixStream::connect(&server).await else { continue };
                let (from_client, to_client) = client.into_split();
                let (from_server, to_server) = server.into_split();
                let answered = Arc::new(Mutex::new(None));
                tokio::spawn(ask(from_client, to_server, sender.clone(), Arc::clone(&answered)));
                tokio::spawn(answer(from_server, to_client, answered));
            }
        });
        Self { socket, held }
    }

    /// The next statement of a migration; none if there was none until `ended` is.
    pub async fn next(&mut self, ended: impl Future<Output = ()>) -> Option<Held> {
        tokio::select! {
            biased;
            held = self.held.recv() => held,
            () = ended => self.held.try_recv().ok(),
        }
    }
}

type Answered = Arc<Mutex<Option<oneshot::Sender<()>>>>;

async fn ask(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    held: mpsc::UnboundedSender<Held>,
    answered: Answered,
) {
    while let Some(packet) = packet(&mut from).await {
        if let Some(statement) = statement_of_a_migration(&packet) {
            let (go_on, may_go_on) = oneshot::channel();
            held.send(Held { statement, go_on }).ok();
            // Whoever does not let it through drops it, and everything with it.
            let Ok(done) = may_go_on.await else { return };
            *answered.lock().unwrap() = Some(done);
        }
        if to.write_all(&packet).await.is_err() {
            return;
        }
    }
}

async fn answer(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, answered: Answered) {
    while let Some(packet) = packet(&mut from).await {
        to.write_all(&packet).await.ok();
        let done = answered.lock().unwrap().take();
        done.map(|done| done.send(()));
    }
    let done = answered.lock().unwrap().take();
    done.map(|done| done.send(()));
}

/// One packet of the protocol, with its head.
async fn packet(from: &mut OwnedReadHalf) -> Option<Vec<u8>> {
    let mut packet = vec![0; 4];
    from.read_exact(&mut packet).await.ok()?;
    let length =
        usize::from(packet[0]) | usize::from(packet[1]) << 8 | usize::from(packet[2]) << 16;
    packet.resize(4 + length, 0);
    from.read_exact(&mut packet[4..]).await.ok()?;
    Some(packet)
}

/// The text of a packet that asks for a statement of a migration.
fn statement_of_a_migration(packet: &[u8]) -> Option<String> {
    const COM_QUERY: u8 = 3;
    let (_, text) = packet.get(4..)?.split_first().filter(|(command, _)| **command == COM_QUERY)?;
    let text = String::from_utf8(text.to_vec()).ok()?;
    let begins = ["ALTER ", "CREATE ", "INSERT ", "UPDATE "];
    let is_step = begins.iter().any(|begin| text.trim_start().starts_with(begin));
    (is_step && !text.contains("_sqlx_migrations")).then_some(text)
}
