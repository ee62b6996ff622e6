//! A TCP connection that can be delayed, throttled, cut, frozen, lost, reset and chopped: a proxy in threads of this
//! process.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use socket2::SockRef;

use crate::HarnessError;

/// Pieces of one direction that are on their way at the same time.
const PIECES_MAX: usize = 256;
const PIECE_BYTES: usize = 16 * 1024;

#[derive(Debug, Default)]
struct State {
    target: String,
    delay: Duration,
    bytes_per_s: Option<u64>,
    segment_bytes: Option<usize>,
    stalls: Option<Stalls>,
    cut: bool,
    frozen: bool,
    closed: bool,
    /// Connections with smaller numbers carry nothing any more.
    lost_before: u64,
    attempts: u64,
    connections: Vec<Connection>,
}

/// Random pauses, as retransmissions make them.
#[derive(Debug, Clone, Copy)]
struct Stalls {
    one_in: u64,
    pause: Duration,
}

#[derive(Debug)]
struct Connection {
    number: u64,
    client: TcpStream,
    service: TcpStream,
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
        shared.state().target = target.to_owned();
        let for_accept = Arc::clone(&shared);
        std::thread::spawn(move || accept(&listener, &for_accept));
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

    /// New connections lead to this service; the old ones stay where they are.
    pub fn retarget(&self, target: &str) {
        self.change(|state| state.target = target.to_owned());
    }

    /// Every piece of data arrives so much later; others follow it meanwhile.
    pub fn delay(&self, delay: Duration) {
        self.change(|state| state.delay = delay);
    }

    /// Each direction of each connection carries no more than this.
    pub fn throttle(&self, bytes_per_s: u64) {
        self.change(|state| state.bytes_per_s = Some(bytes_per_s.max(1)));
    }

    /// Data arrives in segments of at most so many bytes.
    pub fn chop(&self, segment_bytes: usize) {
        self.change(|state| state.segment_bytes = Some(segment_bytes.max(1)));
    }

    /// One piece of data in so many, and everything behind it, waits that much longer: what lost packets look like
    /// above TCP.
    pub fn stall(&self, one_in: u64, pause: Duration) {
        self.change(|state| state.stalls = Some(Stalls { one_in: one_in.max(1), pause }));
    }

    /// Closes all connections and every new one at once.
    pub fn cut(&self) {
        self.change(|state| {
            state.cut = true;
            close(state, Shutdown::Both);
        });
    }

    /// Closes all connections with a reset; new ones are fine.
    pub fn reset(&self) {
        self.change(|state| {
            for Connection { client, service, .. } in &state.connections {
                for stream in [client, service] {
                    // A stream that is closed already needs no reset.
                    drop(SockRef::from(stream).set_linger(Some(Duration::ZERO)));
                }
            }
            // The reset is sent when the last handle is dropped: those that read let go of theirs.
            close(state, Shutdown::Read);
        });
    }

    /// Connections stay open and new ones are accepted, but nothing passes: half-open.
    pub fn freeze(&self) {
        self.change(|state| state.frozen = true);
    }

    /// The connections that are open stay so and never carry anything again, as when a router forgets them; new ones
    /// are fine.
    pub fn lose(&self) {
        self.change(|state| state.lost_before = state.attempts.saturating_add(1));
    }

    /// Everything passes again.
    pub fn heal(&self) {
        self.change(|state| {
            state.delay = Duration::ZERO;
            state.bytes_per_s = None;
            state.segment_bytes = None;
            state.stalls = None;
            state.cut = false;
            state.frozen = false;
        });
    }

    /// Open connections.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.shared.state().connections.len()
    }

    /// Connections that clients began, those included that were closed at once.
    #[must_use]
    pub fn attempts(&self) -> u64 {
        self.shared.state().attempts
    }
}

fn close(state: &mut State, how: Shutdown) {
    for Connection { client, service, .. } in state.connections.drain(..) {
        // A side that closed by itself is closed all the same.
        drop(client.shutdown(how));
        drop(service.shutdown(how));
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

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for client in listener.incoming() {
        let (closed, cut, number, target) = {
            let mut state = shared.state();
            state.attempts = state.attempts.saturating_add(1);
            (state.closed, state.cut, state.attempts, state.target.clone())
        };
        if closed {
            return;
        }
        let Ok(client) = client else { continue };
        if cut {
            continue;
        }
        let Ok(service) = TcpStream::connect(&target) else { continue };
        // Chopped data must leave as it is written.
        drop(client.set_nodelay(true));
        drop(service.set_nodelay(true));
        let pairs =
            (client.try_clone(), service.try_clone(), client.try_clone(), service.try_clone());
        let (Ok(client_in), Ok(service_out), Ok(client_kept), Ok(service_kept)) = pairs else {
            continue;
        };
        {
            let mut state = shared.state();
            if state.cut || state.closed {
                // It was cut while it was being made.
                continue;
            }
            state.connections.push(Connection {
                number,
                client: client_kept,
                service: service_kept,
            });
        }
        carry(client_in, service_out, number, shared);
        carry(service, client, number, shared);
    }
}

/// Carries one direction until either side ends, in two threads: one takes, the other hands over when it is time.
fn carry(from: TcpStream, to: TcpStream, number: u64, shared: &Arc<Shared>) {
    let (pieces, taken) = sync_channel(PIECES_MAX);
    let shared = Arc::clone(shared);
    std::thread::spawn(move || take(from, &pieces));
    std::thread::spawn(move || hand_over(to, number, &taken, &shared));
}

fn take(mut from: TcpStream, pieces: &SyncSender<(Instant, Vec<u8>)>) {
    let mut buffer = vec![0; PIECE_BYTES];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        let piece = buffer.get(..length).unwrap_or_default().to_vec();
        if pieces.send((Instant::now(), piece)).is_err() {
            return;
        }
    }
}

fn hand_over(
    mut to: TcpStream,
    number: u64,
    taken: &Receiver<(Instant, Vec<u8>)>,
    shared: &Shared,
) {
    let mut random = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for (at, piece) in taken {
        let Some((delay, bytes_per_s, segment_bytes, stalls)) = when_it_may(number, shared) else {
            break;
        };
        std::thread::sleep(delay.saturating_sub(at.elapsed()));
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        if let Some(Stalls { one_in, pause }) = stalls
            && random.is_multiple_of(one_in)
        {
            std::thread::sleep(pause);
        }
        if let Some(bytes_per_s) = bytes_per_s {
            let length = u64::try_from(piece.len()).unwrap_or(u64::MAX);
            std::thread::sleep(Duration::from_micros(
                length.saturating_mul(1_000_000) / bytes_per_s,
            ));
        }
        let mut segments = piece.chunks(segment_bytes.unwrap_or(PIECE_BYTES));
        if segments.any(|segment| to.write_all(segment).is_err()) {
            break;
        }
    }
    // Both directions end together: none of the services here uses half-closed connections. One that was cut or reset
    // is not ours any more.
    let mut state = shared.state();
    if let Some(index) = state.connections.iter().position(|ours| ours.number == number) {
        let Connection { client, service, .. } = state.connections.swap_remove(index);
        drop(client.shutdown(Shutdown::Both));
        drop(service.shutdown(Shutdown::Both));
    }
}

type Conditions = (Duration, Option<u64>, Option<usize>, Option<Stalls>);

/// Waits while nothing passes; `None` when the link is no more.
fn when_it_may(number: u64, shared: &Shared) -> Option<Conditions> {
    let mut state = shared.state();
    loop {
        let is_open = state.connections.iter().any(|ours| ours.number == number);
        if state.closed || !is_open {
            return None;
        }
        if !state.frozen && number >= state.lost_before {
            return Some((state.delay, state.bytes_per_s, state.segment_bytes, state.stalls));
        }
        state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
    }
}
