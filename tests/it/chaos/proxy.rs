//! A network between two parts that can be cut, slowed down, black-holed and half-closed.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::sleep;

/// What a network does to what it carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Weather {
    /// Carries it at once.
    #[default]
    Fair,
    /// Carries each piece after this time.
    Slow(Duration),
    /// Accepts everything, carries nothing and closes nothing, as when a host vanishes.
    BlackHole,
    /// Ends every connection, and each new one at once.
    Cut,
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    weather: Weather,
    /// How often the connections that exist lost the direction to the client, and that to the
    /// server.
    half_closed: [u64; 2],
}

/// The way from one part to another.
#[derive(Clone)]
pub struct Pair {
    /// Both parts, for people.
    pub name: String,
    server: SocketAddr,
    state: Arc<watch::Sender<State>>,
}

impl Pair {
    /// A way to a server in fair weather.
    pub fn new(name: impl Into<String>, server: SocketAddr) -> Self {
        Self { name: name.into(), server, state: Arc::default() }
    }

    /// Changes the weather, for connections that exist too.
    pub fn set(&self, weather: Weather) {
        self.state.send_modify(|state| state.weather = weather);
    }

    /// Ends one direction of every connection that exists: that to the server, or that to the
    /// client.
    pub fn half_close(&self, to_server: bool) {
        self.state.send_modify(|state| state.half_closed[usize::from(to_server)] += 1);
    }

    /// Connects, unless the weather or the server does not let us.
    async fn connect(&self) -> Option<TcpStream> {
        let mut changes = self.state.subscribe();
        // In a black hole the client waits; when it ends, its connection is made.
        changes.wait_for(|state| state.weather != Weather::BlackHole).await.ok()?;
        if changes.borrow().weather == Weather::Cut {
            return None;
        }
        TcpStream::connect(self.server).await.ok()
    }

    async fn carry(&self, client: TcpStream, server: TcpStream) {
        for socket in [&client, &server] {
            socket.set_nodelay(true).ok();
        }
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        tokio::join!(
            self.carry_one_way(from_server, to_client, false),
            self.carry_one_way(from_client, to_server, true),
        );
    }

    /// Carries until the source ends, or the weather ends it. Dropping the halves then closes.
    async fn carry_one_way(
        &self,
        mut from: OwnedReadHalf,
        mut to: OwnedWriteHalf,
        to_server: bool,
    ) {
        let mut changes = self.state.subscribe();
        let half_closed = |state: &State| state.half_closed[usize::from(to_server)];
        let before = half_closed(&changes.borrow_and_update());
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let state = *changes.borrow_and_update();
            if state.weather == Weather::Cut || half_closed(&state) != before {
                break;
            }
            let read = tokio::select! {
                biased;
                _ = changes.changed() => continue,
                read = from.read(&mut buffer), if state.weather != Weather::BlackHole => read,
            };
            if let Weather::Slow(delay) = state.weather {
                sleep(delay).await;
            }
            match read {
                Ok(read) if read > 0 && to.write_all(&buffer[..read]).await.is_ok() => (),
                _ => break,
            }
        }
        to.shutdown().await.ok();
    }
}

/// Listens, and carries each connection over one of its pairs: the next whose server accepts it.
pub struct Proxy {
    /// Where it listens.
    pub address: SocketAddr,
}

impl Proxy {
    /// A proxy over some pairs, for as long as the runtime lives.
    pub async fn start(pairs: Vec<Pair>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let mut first = 0;
            while let Ok((client, _)) = listener.accept().await {
                let mut in_turn = pairs.clone();
                in_turn.rotate_left(first % pairs.len());
                first += 1;
                tokio::spawn(connect_and_carry(client, in_turn));
            }
        });
        Self { address }
    }
}

async fn connect_and_carry(client: TcpStream, pairs: Vec<Pair>) {
    for pair in pairs {
        if let Some(server) = pair.connect().await {
            return pair.carry(client, server).await;
        }
    }
}

/// A server that answers each piece with the same piece.
#[cfg(test)]
async fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let (mut from, mut to) = socket.into_split();
            tokio::spawn(async move { tokio::io::copy(&mut from, &mut to).await });
        }
    });
    address
}

#[cfg(test)]
async fn says(stream: &mut TcpStream) -> Option<usize> {
    let mut answer = [0; 2];
    stream.write_all(b"hi").await.ok()?;
    let reading = tokio::time::timeout(Duration::from_millis(200), stream.read(&mut answer));
    // None: nothing comes; 0: the other side has closed.
    Some(reading.await.ok()?.unwrap_or(0))
}

#[tokio::test]
async fn the_weather_does_what_it_is_named_after() {
    let pair = Pair::new("client-server", echo().await);
    let proxy = Proxy::start(vec![pair.clone()]).await;
    let connect = || TcpStream::connect(proxy.address);
    let mut stream = connect().await.unwrap();
    assert_eq!(says(&mut stream).await, Some(2));

    pair.set(Weather::BlackHole);
    assert_eq!(says(&mut stream).await, None);
    let mut new = connect().await.unwrap();
    assert_eq!(says(&mut new).await, None);
    pair.set(Weather::Slow(Duration::from_millis(1)));
    assert_eq!(says(&mut stream).await, Some(2));
    assert_eq!(says(&mut new).await, Some(2));

    let mut stream = connect().await.unwrap();
    assert_eq!(says(&mut stream).await, Some(2));
    pair.half_close(false);
    assert_eq!(says(&mut stream).await, Some(0));
    pair.set(Weather::Cut);
    assert_eq!(says(&mut connect().await.unwrap()).await, Some(0));
    pair.set(Weather::Fair);
    assert_eq!(says(&mut connect().await.unwrap()).await, Some(2));
}

#[tokio::test]
async fn a_server_that_is_away_is_passed_over() {
    let away = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let pairs = vec![Pair::new("away", away), Pair::new("there", echo().await)];
    let proxy = Proxy::start(pairs).await;
    for _ in 0..3 {
        assert_eq!(says(&mut TcpStream::connect(proxy.address).await.unwrap()).await, Some(2));
    }
}
