//! A proxy in front of a server that can answer late, or fall silent: connections stay open, and
//! nothing passes.

use std::{net::SocketAddr, time::Duration};

use oncegate::config::Address;
use tokio::{
    io::{self, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, copy},
    net::{TcpListener, TcpStream},
    sync::watch,
    time::sleep,
};

/// Passes everything on until it is silenced.
pub struct Hole {
    pub address: SocketAddr,
    silent: watch::Sender<bool>,
}

impl Hole {
    /// A proxy to the server at `to`.
    pub async fn start(to: &Address) -> Self {
        Self::start_late(to, Duration::ZERO).await
    }

    /// The same, through which everything that the server sends comes late.
    pub async fn start_late(to: &Address, delay: Duration) -> Self {
        let Address::Tcp(to) = *to else { panic!("not a TCP server") };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let silent = watch::Sender::new(false);
        let heard = silent.clone();
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let mut silent = heard.subscribe();
                tokio::spawn(async move {
                    let silence = async { silent.wait_for(|is_silent| *is_silent).await.is_ok() };
                    let passing = async {
                        let server = TcpStream::connect(to).await?;
                        let (mut from_server, mut to_server) = server.into_split();
                        let (mut from_client, mut to_client) = client.split();
                        tokio::try_join!(
                            async {
                                copy(&mut from_client, &mut to_server).await?;
                                to_server.shutdown().await
                            },
                            pass_late(&mut from_server, &mut to_client, delay),
                        )
                    };
                    let is_silent = tokio::select! {
                        biased;
                        is_silent = silence => is_silent,
                        _ = passing => false,
                    };
                    if is_silent {
                        // Open, and mute, until the test ends.
                        let _client = client;
                        std::future::pending::<()>().await;
                    }
                });
            }
        });
        Self { address, silent }
    }

    /// From now on nothing passes, and new connections get no answer.
    pub fn silence(&self) {
        self.silent.send_replace(true);
    }
}

async fn pass_late(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    delay: Duration,
) -> io::Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let length = from.read(&mut buffer).await?;
        if length == 0 {
            return to.shutdown().await;
        }
        sleep(delay).await;
        to.write_all(&buffer[..length]).await?;
    }
}
