//! A TCP connection that can be delayed, throttled, cut and frozen: a proxy in threads of this process.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::HarnessError;

#[derive(Debug, Default)]
struct State {
    delay: Duration,
    bytes_per_s: Option<u64>,
    cut: bool,
    frozen: bool,
    closed: bool,
    connections: Vec<(TcpStream, TcpStream)>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A proxy between clients and one service.
#[derive(Debug)]
pub struct Link {
    shared: Arc<Shared>,
    address: SocketAddr,
}

impl Link {
    /// A healthy link to `target`, on a free port.
    ///
    /// # Errors
    /// No port is free.
    pub fn to(target: &str) -> Result<Self, HarnessError> {
        let listener =
            TcpListener::bind(("127.0.0.1", 0)).map_err(HarnessError::io("bind a link"))?;
        let address = listener.local_addr().map_err(HarnessError::io("read the link's address"))?;
        let shared = Arc::new(Shared::default());
        let (for_accept, target) = (Arc::clone(&shared), target.to_owned());
        std::thread::spawn(move || accept(&listener, &for_accept, &target));
        Ok(Self { shared, address })
    }

    /// `host:port` for clients.
    #[must_use]
    pub fn addr(&self) -> String {
        self.address.to_string()
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.shared.state());
        self.shared.changed.notify_all();
    }

    /// Every piece of data arrives so much later.
    pub fn delay(&self, delay: Duration) {
        self.change(|state| state.delay = delay);
    }

    /// Each direction of each connection carries no more than this.
    pub fn throttle(&self, bytes_per_s: u64) {
        self.change(|state| state.bytes_per_s = Some(bytes_per_s.max(1)));
    }

    /// Closes all connections and every new one at once.
    pub fn cut(&self) {
        self.change(|state| {
            state.cut = true;
            for (client, service) in state.connections.drain(..) {
                // A side that closed by itself is closed all the same.
                drop(client.shutdown(Shutdown::Both));
                drop(service.shutdown(Shutdown::Both));
            }
        });
    }

    /// Connections stay open and new ones are accepted, but nothing passes: half-open.
    pub fn freeze(&self) {
        self.change(|state| state.frozen = true);
    }

    /// Everything passes again.
    pub fn heal(&self) {
        self.change(|state| {
            state.delay = Duration::ZERO;
            state.bytes_per_s = None;
            state.cut = false;
            state.frozen = false;
        });
    }

    /// Open connections.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.shared.state().connections.len()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.cut();
        self.change(|state| {
            state.closed = true;
            state.frozen = false;
        });
        // Wakes the thread that accepts, so that it sees the end.
        drop(TcpStream::connect(self.address));
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>, target: &str) {
    for client in listener.incoming() {
        let (closed, cut) = {
            let state = shared.state();
            (state.closed, state.cut)
        };
        if closed {
            return;
        }
        let Ok(client) = client else { continue };
        if cut {
            continue;
        }
        let Ok(service) = TcpStream::connect(target) else { continue };
        let pairs =
            (client.try_clone(), service.try_clone(), client.try_clone(), service.try_clone());
        let (Ok(client_in), Ok(service_out), Ok(client_kept), Ok(service_kept)) = pairs else {
            continue;
        };
        shared.state().connections.push((client_kept, service_kept));
        let (one, other) = (Arc::clone(shared), Arc::clone(shared));
        std::thread::spawn(move || carry(client_in, service_out, &one));
        std::thread::spawn(move || carry(service, client, &other));
    }
}

/// Carries one direction until either side ends.
fn carry(mut from: TcpStream, mut to: TcpStream, shared: &Shared) {
    let mut buffer = [0; 16 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        let (delay, bytes_per_s) = {
            let mut state = shared.state();
            while state.frozen && !state.closed {
                state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            (state.delay, state.bytes_per_s)
        };
        std::thread::sleep(delay);
        if let Some(bytes_per_s) = bytes_per_s {
            let micros =
                u64::try_from(length).unwrap_or(u64::MAX).saturating_mul(1_000_000) / bytes_per_s;
            std::thread::sleep(Duration::from_micros(micros));
        }
        if to.write_all(buffer.get(..length).unwrap_or_default()).is_err() {
            break;
        }
    }
    // Both directions end together: none of the services here uses half-closed connections.
    drop(from.shutdown(Shutdown::Both));
    drop(to.shutdown(Shutdown::Both));
    let (from_address, to_address) = (from.peer_addr(), to.peer_addr());
    shared.state().connections.retain(|(client, service)| {
        let ours = |address: &std::io::Result<SocketAddr>| {
            address.as_ref().is_ok_and(|address| {
                client.peer_addr().is_ok_and(|peer| peer == *address)
                    || service.peer_addr().is_ok_and(|peer| peer == *address)
            })
        };
        client.peer_addr().is_ok()
            && service.peer_addr().is_ok()
            && !ours(&from_address)
            && !ours(&to_address)
    });
}
