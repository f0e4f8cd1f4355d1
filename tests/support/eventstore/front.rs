//! The network before the server: every connection goes through here, and is cut or silenced here.

use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::wire::gossip::member_info::VNodeState;
use crate::wire::gossip::{EndPoint, MemberInfo};

pub(crate) struct Front {
    behind: SocketAddr,
    connections: Mutex<Vec<AbortHandle>>,
    away: watch::Sender<bool>,
    silent: watch::Sender<bool>,
    members: Mutex<Vec<MemberInfo>>,
}

impl Front {
    pub(crate) fn new(behind: SocketAddr) -> Self {
        let (away, silent) = (watch::channel(false).0, watch::channel(false).0);
        Self { behind, connections: Mutex::default(), away, silent, members: Mutex::default() }
    }

    /// What gossip tells: the nodes, of which the first leads.
    pub(crate) fn say_members(&self, nodes: &[SocketAddr]) {
        let member = |(index, node): (usize, &SocketAddr)| MemberInfo {
            state: if index == 0 { VNodeState::Leader } else { VNodeState::Follower }.into(),
            is_alive: true,
            http_end_point: Some(EndPoint { address: node.ip().to_string(), port: node.port().into() }),
            ..Default::default()
        };
        *self.members.lock() = nodes.iter().enumerate().map(member).collect();
    }

    pub(crate) fn members(&self) -> Vec<MemberInfo> {
        self.members.lock().clone()
    }

    pub(crate) fn cut(&self) {
        for connection in self.connections.lock().drain(..) {
            connection.abort();
        }
    }

    pub(crate) fn go_away(&self, away: bool) {
        self.away.send_replace(away);
        if away {
            self.cut();
        }
    }

    pub(crate) fn go_silent(&self, silent: bool) {
        self.silent.send_replace(silent);
    }

    pub(crate) async fn accept(self: Arc<Self>, listener: TcpListener) {
        while let Ok((client, _)) = listener.accept().await {
            if *self.away.borrow() {
                continue;
            }
            let (behind, silent) = (self.behind, self.silent.subscribe());
            let relay = tokio::spawn(async move {
                let _ = relay(client, behind, silent).await;
            });
            let mut connections = self.connections.lock();
            connections.retain(|connection| !connection.is_finished());
            connections.push(relay.abort_handle());
        }
    }
}

async fn relay(client: TcpStream, behind: SocketAddr, silent: watch::Receiver<bool>) -> std::io::Result<()> {
    let server = TcpStream::connect(behind).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (client_in, client_out) = client.into_split();
    let (server_in, server_out) = server.into_split();
    tokio::select! {
        ended = pass(client_in, server_out, silent.clone(), true) => ended,
        ended = pass(server_in, client_out, silent, false) => ended,
    }
}

async fn pass(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut silent: watch::Receiver<bool>,
    at_once: bool,
) -> std::io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = from.read(&mut buffer).await?;
        // The client leaves Nagle's algorithm on: the second half of each of its calls waits for this acknowledgement.
        if at_once {
            from.as_ref().set_quickack(true)?;
        }
        if read == 0 {
            return Ok(());
        }
        if silent.wait_for(|silent| !silent).await.is_err() {
            return Ok(());
        }
        to.write_all(&buffer[..read]).await?;
    }
}
