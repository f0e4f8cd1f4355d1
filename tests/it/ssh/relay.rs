//! A relay between a service and a login node. It cuts what goes through it, at once or after some bytes; it lets nothing
//! through; it refuses. The service knows nothing of it but a port.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// More bytes than anybody sends.
const NEVER: i64 = i64::MAX;

/// How connections fare.
#[derive(Clone, Copy)]
struct Fate {
    /// Connections made in an earlier one have been cut.
    era: u32,
    /// Nothing reaches the service.
    deaf: bool,
    /// Nothing reaches the login node either.
    mute: bool,
}

struct Shared {
    login_node: u16,
    fate: watch::Sender<Fate>,
    /// Bytes towards the login node until a cut.
    left: AtomicI64,
    open: AtomicU32,
    cuts: AtomicU32,
}

pub struct Relay {
    pub port: u16,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

impl Drop for Relay {
    fn drop(&mut self) {
        if let Some(accepting) = self.accepting.take() {
            accepting.abort();
        }
        self.shared.end_era();
    }
}

impl Relay {
    /// A relay to the login node at this port.
    pub async fn to(login_node: u16) -> Self {
        let fate = watch::Sender::new(Fate { era: 0, deaf: false, mute: false });
        let shared = Arc::new(Shared {
            login_node,
            fate,
            left: AtomicI64::new(NEVER),
            open: AtomicU32::new(0),
            cuts: AtomicU32::new(0),
        });
        let mut relay = Self { port: 0, shared, accepting: None };
        relay.serve().await;
        relay
    }

    /// Takes connections, on the same port as before.
    pub async fn serve(&mut self) {
        let listener = TcpListener::bind(("127.0.0.1", self.port)).await.unwrap();
        self.port = listener.local_addr().unwrap().port();
        let shared = self.shared.clone();
        self.accepting = Some(tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(shared.clone().carry(stream));
            }
        }));
    }

    /// Nobody listens any more, and what is open is cut.
    pub async fn refuse(&mut self) {
        if let Some(accepting) = self.accepting.take() {
            accepting.abort();
            let _ = accepting.await;
        }
        self.cut();
    }

    /// Cuts what is open.
    pub fn cut(&self) {
        self.shared.cut();
    }

    /// Cuts what is open once so many bytes more have gone to the login node.
    pub fn cut_after(&self, bytes: u64) {
        self.shared.left.store(i64::try_from(bytes).unwrap(), Ordering::SeqCst);
    }

    /// Takes a cut back that has not come yet; whether it has come.
    pub fn has_cut(&self) -> bool {
        self.shared.left.swap(NEVER, Ordering::SeqCst) <= 0
    }

    /// Holds back what the login node says.
    pub fn deafen(&self, deaf: bool) {
        self.shared.fate.send_modify(|fate| fate.deaf = deaf);
    }

    /// Takes connections, and lets nothing through either way.
    pub fn freeze(&self, frozen: bool) {
        self.shared.fate.send_modify(|fate| (fate.deaf, fate.mute) = (frozen, frozen));
    }

    /// How often open connections were cut.
    pub fn cuts(&self) -> u32 {
        self.shared.cuts.load(Ordering::SeqCst)
    }
}

impl Shared {
    fn cut(&self) {
        if self.open.load(Ordering::SeqCst) > 0 {
            self.cuts.fetch_add(1, Ordering::SeqCst);
        }
        self.end_era();
    }

    fn end_era(&self) {
        self.fate.send_modify(|fate| *fate = Fate { era: fate.era + 1, deaf: false, mute: false });
    }

    async fn carry(self: Arc<Self>, service: TcpStream) {
        let mut fate = self.fate.subscribe();
        let era = fate.borrow_and_update().era;
        let Ok(node) = TcpStream::connect(("127.0.0.1", self.login_node)).await else { return };
        for stream in [&service, &node] {
            let _ = stream.set_nodelay(true);
        }
        self.open.fetch_add(1, Ordering::SeqCst);
        let ((from_service, to_service), (from_node, to_node)) = (service.into_split(), node.into_split());
        // Whichever ends first ends both.
        tokio::select! {
            () = self.pump(from_service, to_node, era, true) => {}
            () = self.pump(from_node, to_service, era, false) => {}
            _ = fate.wait_for(|fate| fate.era != era) => {}
        }
        self.open.fetch_sub(1, Ordering::SeqCst);
    }

    async fn pump(
        &self,
        mut from: impl AsyncReadExt + Unpin,
        mut to: impl AsyncWriteExt + Unpin,
        era: u32,
        up: bool,
    ) {
        let (mut fate, mut room) = (self.fate.subscribe(), vec![0; 16 * 1024]);
        while let Ok(read @ 1..) = from.read(&mut room).await {
            let passes = |fate: &Fate| fate.era != era || if up { !fate.mute } else { !fate.deaf };
            // What was held back when the connection was cut is lost.
            if fate.wait_for(passes).await.is_ok_and(|fate| fate.era != era) {
                return;
            }
            let mut sent = read;
            let mut last = false;
            if up {
                let size = i64::try_from(read).unwrap();
                let before = self.left.load(Ordering::SeqCst);
                if before != NEVER {
                    let left = self.left.fetch_sub(size, Ordering::SeqCst) - size;
                    last = left <= 0 && left + size > 0;
                    sent = if last { usize::try_from(left + size).unwrap() } else { read };
                }
            }
            if to.write_all(&room[..sent]).await.is_err() {
                return;
            }
            if last {
                self.cut();
            }
        }
    }
}
