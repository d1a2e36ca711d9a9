//! A proxy in front of a server that can fall silent: connections stay open, and nothing passes.

use std::net::SocketAddr;

use oncegate::config::Address;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
};

/// Passes everything on until it is silenced.
pub struct Hole {
    pub address: SocketAddr,
    silent: watch::Sender<bool>,
}

impl Hole {
    /// A proxy to the server at `to`.
    pub async fn start(to: &Address) -> Self {
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
                        let mut server = TcpStream::connect(to).await?;
                        copy_bidirectional(&mut client, &mut server).await
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
