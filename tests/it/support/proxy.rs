//! A network that can be slow and fall silent, between a role and its server.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Forwards connections, until they fall silent: those that exist then carry nothing any more and
/// are not closed either, as when a host vanishes. New ones work.
pub struct Proxy {
    /// Where it listens.
    pub address: SocketAddr,
    generation: Arc<watch::Sender<u64>>,
}

impl Proxy {
    /// A proxy in front of a server.
    pub async fn start(server: SocketAddr) -> Self {
        Self::start_slow(server, Duration::ZERO).await
    }

    /// One that carries everything so much later, each way.
    pub async fn start_slow(server: SocketAddr, delay: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let generation = Arc::new(watch::Sender::new(0));
        let changes = Arc::clone(&generation);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let silence = changes.subscribe();
                let Ok(server) = TcpStream::connect(server).await else { continue };
                let (from_client, to_client) = client.into_split();
                let (from_server, to_server) = server.into_split();
                tokio::spawn(forward(from_client, to_server, silence.clone(), delay));
                tokio::spawn(forward(from_server, to_client, silence, delay));
            }
        });
        Self { address, generation }
    }

    /// Lets every connection that exists fall silent.
    pub fn fall_silent(&self) {
        self.generation.send_modify(|generation| *generation += 1);
    }
}

async fn forward(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut silence: watch::Receiver<u64>,
    delay: Duration,
) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = tokio::select! {
            read = from.read(&mut buffer) => read.unwrap_or(0),
            // Both sides stay open, and nothing passes.
            _ = silence.changed() => std::future::pending().await,
        };
        tokio::time::sleep(delay).await;
        if read == 0 || to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
