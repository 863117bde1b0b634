//! The metadata server, against a server that does nothing but answer as much; and what a connection to it costs.

use std::convert::Infallible;
use std::future::ready;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use http_body_util::{BodyExt as _, Empty, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::SendRequest;
use hyper::header::{DATE, HOST, HeaderName};
use hyper::service::service_fn;
use hyper::{Request, Response, client, server};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;

use super::{Layer, Meter, PAUSE};
use crate::daemon::{Daemon, MOST_CLIENTS};
use crate::figure::Figure;
use crate::slice::{Asker, Load, Part, Processor, Slice};
use crate::stand::{Running, Stand, free_port};

/// A server, and clients that ask it for one thing after the other.
pub(super) struct Web {
    pub(super) name: &'static str,
    clients: Vec<Client>,
    processes: Vec<(Part, u32)>,
}

#[derive(Clone)]
struct Client {
    address: SocketAddr,
    /// Whether it asks the next thing on the same connection.
    keeps: bool,
    connection: Arc<Mutex<Option<Connection>>>,
}

/// What the server that does nothing answers.
#[derive(Serialize, Deserialize)]
struct Answer {
    headers: Vec<(String, String)>,
    body: String,
}

impl Meter {
    /// Of HTTP. No device has a part in it, for the token is cached.
    pub(super) async fn web(&mut self, stand: &Stand) {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        stand.served.reconfigure(&[("[listen]", &format!("[listen]\nhttp = \"{address}\""))]);
        let daemon = Daemon::start(&stand.served);
        daemon.sign().await;
        let web = |name| Web::new(name, address, daemon.processes());
        let token = web(TOKEN);
        self.connections(stand, &token, &web(NEW_CONNECTION)).await;
        let (nothing, address) = serve_nothing(&token.clients[0].response().await);
        let base = Web::new(NOTHING, address, vec![(Part::Daemon, nothing.0.id())]);
        for clients in [1, 8, 32] {
            let load = self.load(clients);
            self.rates(stand, Layer::Web(&base), &[Layer::Web(&token)], &load).await;
        }
        daemon.stop();
    }

    /// What a connection costs, and how much of it is the look-up of its user.
    async fn connections(&mut self, stand: &Stand, kept: &Web, new: &Web) {
        self.say(stand, "connections");
        let load = Load { gap: PAUSE, ..self.load(1) };
        let seen = self.alternate(Layer::Web(kept), &[Layer::Web(new)], &load).await.remove(0);
        let p50 = |slice: &Slice| slice.percentile(50.0) * 1e6;
        let both = [
            (kept, seen.iter().map(|pair| p50(&pair.base)).collect()),
            (new, seen.iter().map(|pair| p50(&pair.own)).collect()),
        ];
        for (web, values) in both {
            self.add(Figure::new(stand, format!("{}: p50, 1 client with pauses of 5 ms", web.name), "us", values));
        }
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let server = listener.local_addr().unwrap();
        let connect = || (std::net::TcpStream::connect(server).unwrap(), listener.accept().unwrap());
        let connections: Vec<_> = std::iter::repeat_with(connect).take(LOOKED_UP).collect();
        let look_up = |client| {
            let begun = Instant::now();
            signet::front::http::uid(client, server).unwrap();
            begun.elapsed().as_secs_f64()
        };
        let round = || connections.iter().map(|(_, (_, client))| look_up(*client)).collect();
        let rounds = std::iter::repeat_with(|| p50(&Slice::new(round(), Duration::ZERO, Processor::default())));
        let values = rounds.take(self.plan.pairs).collect();
        self.add(Figure::new(stand, "look-up of a connection's user: p50", "us", values).at_most(300.0, 50.0));
    }
}

impl Web {
    fn new(name: &'static str, address: SocketAddr, processes: Vec<(Part, u32)>) -> Self {
        let client = || Client { address, keeps: name != NEW_CONNECTION, connection: Arc::default() };
        Self { name, clients: std::iter::repeat_with(client).take(MOST_CLIENTS).collect(), processes }
    }

    pub(super) async fn run(&self, load: &Load) -> Slice {
        let processes = || self.processes.iter().copied().chain([(Part::Client, std::process::id())]);
        load.run(self.clients.iter().cloned(), || Processor::of(processes())).await
    }
}

impl Client {
    async fn response(&self) -> Response<Bytes> {
        let mut connection = self.connection.lock().await;
        loop {
            let mut open = match connection.take() {
                Some(open) => open,
                None => connect(self.address).await,
            };
            // The server closes one that is not used for a while, and one too many until others are gone.
            let Ok(response) = get(&mut open, self.address).await else { continue };
            assert!(response.status().is_success(), "{response:?}");
            if self.keeps {
                *connection = Some(open);
            }
            return response;
        }
    }
}

impl Asker for Client {
    async fn ask(&mut self, _number: usize) {
        self.response().await;
    }
}

async fn connect(address: SocketAddr) -> Connection {
    let stream = TcpStream::connect(address).await.unwrap();
    let (open, connection) = client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    open
}

async fn get(open: &mut Connection, address: SocketAddr) -> hyper::Result<Response<Bytes>> {
    let request = Request::get("/computeMetadata/v1/instance/service-accounts/default/token");
    let request = request.header(HOST, address.to_string()).header("metadata-flavor", "Google");
    open.ready().await?;
    let (head, body) = open.send_request(request.body(Empty::new()).unwrap()).await?.into_parts();
    Ok(Response::from_parts(head, body.collect().await?.to_bytes()))
}

/// Starts a server that does nothing but answer this, on one thread as the daemon does.
fn serve_nothing(response: &Response<Bytes>) -> (Running, SocketAddr) {
    let text = |value: &[u8]| String::from_utf8(value.to_vec()).unwrap();
    // Each server writes the date by itself.
    let headers = response.headers().iter().filter(|(name, _)| **name != DATE);
    let headers = headers.map(|(name, value)| (name.to_string(), text(value.as_bytes()))).collect();
    let answer = Answer { headers, body: text(response.body()) };
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.arg(SUBCOMMAND).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut process = Running(command.spawn().unwrap());
    writeln!(process.0.stdin.take().unwrap(), "{}", serde_json::to_string(&answer).unwrap()).unwrap();
    let mut address = String::new();
    BufReader::new(process.0.stdout.take().unwrap()).read_line(&mut address).unwrap();
    (process, address.trim().parse().unwrap())
}

/// What that server does: it is told what to answer, and tells where it listens.
pub(crate) fn serve() {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    let Answer { headers, body } = serde_json::from_str(&line).unwrap();
    let mut response = Response::new(Full::new(Bytes::from(body)));
    for (name, value) in headers {
        response.headers_mut().insert(HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
    }
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        println!("{}", listener.local_addr().unwrap());
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let response = response.clone();
            let answer = service_fn(move |_: Request<Incoming>| ready(Ok::<_, Infallible>(response.clone())));
            tokio::spawn(server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer));
        }
    });
}

type Connection = SendRequest<Empty<Bytes>>;

/// What the program is told to be a server that does nothing with.
pub(crate) const SUBCOMMAND: &str = "nothing";
pub(super) const TOKEN: &str = "metadata token, cached";
const NEW_CONNECTION: &str = "metadata token, cached, on a new connection";
const NOTHING: &str = "HTTP that does nothing";
const LOOKED_UP: usize = 256;
