//! A TCP proxy between a client and a server, which fails as networks do.

use std::net::SocketAddr;

use oncegate::config::Address;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
};

/// What becomes of the connections through a [`Wire`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Everything passes.
    Open,
    /// Nothing passes, and neither end sees that the other has closed.
    HalfOpen,
    /// The server's ends are closed; the clients see nothing of it.
    ServerCut,
    /// The connections are closed.
    Cut,
}

/// Goes on for as long as the test.
pub struct Wire {
    /// The server, through this proxy.
    pub address: Address,
    state: watch::Sender<State>,
}

impl Wire {
    pub async fn to(server: &Address) -> Self {
        let Address::Tcp(server) = *server else { panic!("not TCP: {server}") };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = Address::Tcp(listener.local_addr().unwrap());
        let state = watch::Sender::new(State::Open);
        let watched = state.subscribe();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(carry(client, server, watched.clone()));
            }
        });
        Self { address, state }
    }

    /// From now on nothing passes, and neither end notices by itself.
    pub fn freeze(&self) {
        self.state.send_replace(State::HalfOpen);
    }

    /// What was frozen is closed for the server, as if it had found out.
    pub fn cut_server(&self) {
        self.state.send_replace(State::ServerCut);
    }

    /// Closes the connections, and every new one.
    pub fn cut(&self) {
        self.state.send_replace(State::Cut);
    }
}

async fn carry(mut client: TcpStream, server: SocketAddr, state: watch::Receiver<State>) {
    let mut server = TcpStream::connect(server).await.unwrap();
    let mut changes = state.clone();
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    tokio::select! {
        () = pass(from_client, to_server, &state) => {}
        () = pass(from_server, to_client, &state) => {}
        _ = changes.wait_for(|state| matches!(state, State::ServerCut | State::Cut)) => {}
    }
    let is_hidden = |state: &State| matches!(state, State::HalfOpen | State::ServerCut);
    if *changes.borrow_and_update() == State::ServerCut {
        drop(server);
    }
    // Whoever is left sees nothing of it.
    let _ = changes.wait_for(|state| !is_hidden(state)).await;
}

/// Hands bytes on, or drops them, until `from` is closed.
async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    state: &watch::Receiver<State>,
) {
    let mut bytes = vec![0; 16 * 1024];
    while let Ok(count @ 1..) = from.read(&mut bytes).await {
        if *state.borrow() == State::Open && to.write_all(&bytes[..count]).await.is_err() {
            return;
        }
    }
}
