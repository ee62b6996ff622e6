//! Between the program and a node: frames of CQL's protocol, version 4, pass, unless a request that writes is to be
//! answered here.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

const HEADER: usize = 9;
const VERSION_OF_ANSWERS: u8 = 0x84;
const EXECUTE: u8 = 0x0A;
const BATCH: u8 = 0x0D;
pub const ERROR: u8 = 0x00;
pub const READY: u8 = 0x02;
pub const RESULT: u8 = 0x08;

/// What becomes of a request that writes.
#[derive(Debug, Clone)]
pub enum Forgery {
    /// This opcode with this body is the answer.
    Answer(u8, Vec<u8>),
    /// The connection ends.
    Close,
    /// There is no answer.
    Silence,
}

/// Which requests it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Of {
    /// All that write.
    All,
    /// Those of more than one row.
    Batches,
    /// Those of more than one row that are longer than this.
    BatchesOver(usize),
    /// Those that have these bytes.
    With(&'static str),
}

#[derive(Default)]
struct State {
    forgery: Option<(Of, Forgery)>,
    refuses: bool,
    forged: u64,
    written: u64,
    connections: u64,
    open: Vec<TcpStream>,
}

/// The proxy; it lives as long as the test.
#[derive(Clone)]
pub struct Proxy {
    state: Arc<Mutex<State>>,
    address: SocketAddr,
}

impl Proxy {
    pub fn to(node: &str) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let proxy = Self { state: Arc::default(), address };
        let (node, of_thread) = (node.to_owned(), proxy.clone());
        std::thread::spawn(move || {
            for client in listener.incoming() {
                of_thread.accept(client.unwrap(), &node);
            }
        });
        proxy
    }

    /// `host:port` for clients.
    pub fn addr(&self) -> String {
        self.address.to_string()
    }

    /// Answers these requests so from now on.
    pub fn forge(&self, of: Of, forgery: Forgery) {
        let mut state = self.state.lock().unwrap();
        state.forgery = Some((of, forgery));
        state.forged = 0;
    }

    /// Lets everything pass.
    pub fn heal(&self) {
        let mut state = self.state.lock().unwrap();
        state.forgery = None;
        state.refuses = false;
    }

    /// Ends all connections, and every new one at once.
    pub fn refuse(&self) {
        let mut state = self.state.lock().unwrap();
        state.refuses = true;
        for stream in state.open.drain(..) {
            drop(stream.shutdown(Shutdown::Both));
        }
    }

    /// Requests that were answered here since the last call of [`Proxy::forge`].
    pub fn forged(&self) -> u64 {
        self.state.lock().unwrap().forged
    }

    /// Requests that write, and connections, that came so far.
    pub fn counts(&self) -> (u64, u64) {
        let state = self.state.lock().unwrap();
        (state.written, state.connections)
    }

    fn accept(&self, client: TcpStream, node: &str) {
        let mut state = self.state.lock().unwrap();
        state.connections += 1;
        if state.refuses {
            return;
        }
        let Ok(server) = TcpStream::connect(node) else { return };
        client.set_nodelay(true).unwrap();
        server.set_nodelay(true).unwrap();
        state.open.extend([client.try_clone().unwrap(), server.try_clone().unwrap()]);
        let (of_client, of_server) = (Arc::new(client), Arc::new(server));
        let whole = Arc::new(Mutex::new(()));
        let (client, server) = (Arc::clone(&of_client), Arc::clone(&of_server));
        let for_answers = Arc::clone(&whole);
        std::thread::spawn(move || {
            while let Some(frame) = read_frame(&server) {
                let _whole = for_answers.lock().unwrap();
                if (&*client).write_all(&frame).is_err() {
                    break;
                }
            }
            end(&client, &server);
        });
        let proxy = self.clone();
        std::thread::spawn(move || {
            proxy.carry(&of_client, &of_server, &whole);
            end(&of_client, &of_server);
        });
    }

    /// Carries requests until one side ends.
    fn carry(&self, mut client: &TcpStream, mut server: &TcpStream, whole: &Mutex<()>) {
        while let Some(frame) = read_frame(client) {
            match self.forgery(frame[4], &frame[HEADER..]) {
                None if server.write_all(&frame).is_ok() => {}
                Some(Forgery::Silence) => {}
                Some(Forgery::Answer(opcode, body)) => {
                    let mut answer = vec![VERSION_OF_ANSWERS, 0, frame[2], frame[3], opcode];
                    answer.extend(u32::try_from(body.len()).unwrap().to_be_bytes());
                    answer.extend(body);
                    let _whole = whole.lock().unwrap();
                    if client.write_all(&answer).is_err() {
                        return;
                    }
                }
                None | Some(Forgery::Close) => return,
            }
        }
    }

    fn forgery(&self, opcode: u8, body: &[u8]) -> Option<Forgery> {
        if opcode != EXECUTE && opcode != BATCH {
            return None;
        }
        let mut state = self.state.lock().unwrap();
        state.written += 1;
        let (of, forgery) = state.forgery.clone()?;
        let is_meant = match of {
            Of::All => true,
            Of::Batches => opcode == BATCH,
            Of::BatchesOver(bytes) => opcode == BATCH && body.len() > bytes,
            Of::With(bytes) => body.windows(bytes.len()).any(|window| window == bytes.as_bytes()),
        };
        if !is_meant {
            return None;
        }
        state.forged += 1;
        Some(forgery)
    }
}

fn end(client: &TcpStream, server: &TcpStream) {
    // One that has ended already needs no end.
    drop(client.shutdown(Shutdown::Both));
    drop(server.shutdown(Shutdown::Both));
}

fn read_frame(mut from: &TcpStream) -> Option<Vec<u8>> {
    let mut frame = vec![0; HEADER];
    from.read_exact(&mut frame).ok()?;
    let length = u32::from_be_bytes(frame[5..HEADER].try_into().unwrap());
    frame.resize(HEADER + usize::try_from(length).unwrap(), 0);
    from.read_exact(&mut frame[HEADER..]).ok()?;
    Some(frame)
}
