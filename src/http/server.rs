//! The server: few connections, little time for each. Slow or many clients cost this program next to nothing, because
//! what is not answered makes room for what comes.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum::http::{Request, header};
use axum::response::Response;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio_util::sync::CancellationToken;

use super::guard::Peer;
use super::routes;
use super::site::{Site, SiteParts};
use crate::config::HttpConfig;
use crate::sync::lock;

/// Connections at a time; a new one beyond takes the place of the oldest that is not being answered.
const CONNECTIONS_MAX: usize = 64;
/// The head of a request arrives within this time, the first byte of the first one included.
const HEAD_TIME_MAX: Duration = Duration::from_secs(5);
/// Most headers and bytes of a request's head.
const HEADERS_MAX: usize = 64;
const HEAD_BYTES_MAX: usize = 16 << 10;
/// After a failed accept, most likely for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// A server that is bound, so that its address is known before anything else starts.
pub struct Bound {
    listener: TcpListener,
    socket: Option<(UnixListener, PathBuf)>,
    /// Where it listens.
    pub address: SocketAddr,
}

impl Bound {
    /// Binds what is configured; port 0 takes any free one.
    ///
    /// # Errors
    /// The address is taken or not ours, or the socket cannot be made.
    pub async fn to(config: &HttpConfig) -> anyhow::Result<Self> {
        let address = config.bind;
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("bind http.bind {address}"))?;
        let address = listener.local_addr().context("read the bound address")?;
        let socket = match &config.socket {
            Some(path) => Some((
                bind_socket(path)
                    .with_context(|| format!("bind http.socket {}", path.display()))?,
                path.clone(),
            )),
            None => None,
        };
        Ok(Self { listener, socket, address })
    }
}

/// A socket that its owner and its group may open. One that a process before us has left is replaced; one that somebody
/// answers at is not.
fn bind_socket(path: &Path) -> std::io::Result<UnixListener> {
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => return Err(std::io::ErrorKind::AddrInUse.into()),
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path)?;
        }
        Err(_) => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
    Ok(listener)
}

/// One connection, as the others see it.
struct Connection {
    busy: AtomicBool,
    end: CancellationToken,
}

#[derive(Default)]
struct Connections(Mutex<VecDeque<Arc<Connection>>>);

impl Connections {
    /// Room for a new connection, if need be at the cost of the oldest idle one; `None` when all are being answered.
    fn enter(&self) -> Option<Arc<Connection>> {
        let mut open = lock(&self.0);
        if open.len() >= CONNECTIONS_MAX {
            let idle = open.iter().position(|other| !other.busy.load(Ordering::Relaxed))?;
            open.remove(idle)?.end.cancel();
        }
        let new =
            Arc::new(Connection { busy: AtomicBool::new(false), end: CancellationToken::new() });
        open.push_back(Arc::clone(&new));
        Some(new)
    }

    fn leave(&self, connection: &Arc<Connection>) {
        lock(&self.0).retain(|other| !Arc::ptr_eq(other, connection));
    }
}

/// Answers until `stop`.
///
/// # Errors
/// The description of the paths cannot be made; that is a fault of this program.
pub async fn serve(bound: Bound, parts: SiteParts, stop: CancellationToken) -> std::io::Result<()> {
    let router = routes::router(Site::new(parts));
    let connections = Arc::new(Connections::default());
    let tasks = tokio_util::task::TaskTracker::new();
    let Bound { listener, socket, .. } = bound;
    let (unix, path) = socket.map_or((None, None), |(unix, path)| (Some(unix), Some(path)));
    loop {
        let from_socket = async {
            match &unix {
                Some(unix) => unix.accept().await.map(|(stream, _)| stream),
                None => std::future::pending().await,
            }
        };
        let failed = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted.map(|(stream, address)| {
                let peer = Peer::Network(address);
                accept(&tasks, &connections, &router, &stop, stream, peer);
            }),
            accepted = from_socket => accepted.map(|stream| {
                accept(&tasks, &connections, &router, &stop, stream, Peer::Socket);
            }),
        };
        if let Err(error) = failed {
            tracing::debug!(%error, "accept a connection");
            tokio::time::sleep(ACCEPT_PAUSE).await;
        }
    }
    tasks.close();
    tasks.wait().await;
    if let Some(path) = path {
        std::fs::remove_file(path)?;
    }
    Ok(())
}

fn accept<S>(
    tasks: &tokio_util::task::TaskTracker,
    connections: &Arc<Connections>,
    router: &Router,
    stop: &CancellationToken,
    stream: S,
    peer: Peer,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    // Nobody is told: an answer would cost more than it is worth to who floods.
    let Some(connection) = connections.enter() else { return };
    let (connections, router, stop) = (Arc::clone(connections), router.clone(), stop.clone());
    tasks.spawn(async move {
        let ours = Arc::clone(&connection);
        let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
            let (mut router, ours) = (router.clone(), Arc::clone(&ours));
            request.extensions_mut().insert(peer);
            async move {
                ours.busy.store(true, Ordering::Relaxed);
                let response: Response = call(&mut router, request).await;
                let is_stream = response
                    .headers()
                    .get(header::CONTENT_TYPE)
                    .is_some_and(|content| content == "text/event-stream");
                ours.busy.store(is_stream, Ordering::Relaxed);
                Ok::<_, Infallible>(response)
            }
        });
        let serving = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIME_MAX)
            .max_headers(HEADERS_MAX)
            .max_buf_size(HEAD_BYTES_MAX)
            .serve_connection(TokioIo::new(stream), service);
        let mut serving = std::pin::pin!(serving);
        let ended = tokio::select! {
            ended = serving.as_mut() => ended,
            () = connection.end.cancelled() => Ok(()),
            () = stop.cancelled() => {
                serving.as_mut().graceful_shutdown();
                serving.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, %peer, "connection");
        }
        connections.leave(&connection);
    });
}

async fn call(router: &mut Router, request: Request<Incoming>) -> Response {
    use tower_service::Service as _;
    match router.call(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}
