//! Stands between a program and a swtpm: counts the commands, and changes answers on demand.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use super::swtpm::{SwTpm, free_pair, tcti};

/// A proxy on ports of its own. Its threads end with the test's process.
pub(crate) struct TpmProxy {
    port: u16,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Default)]
struct Shared {
    commands: Vec<u32>,
    /// What to do to the next answer to this command, or to all of them.
    fault: Option<(u32, Fault)>,
    lasts: bool,
    /// Connections are closed at once.
    refuses: bool,
    /// The TPM is to be started up before anything else.
    starts_up: bool,
}

/// What may happen to an answer on its way.
#[derive(Clone, Copy)]
pub(crate) enum Fault {
    /// Its last byte but eighty has a bit flipped: in the middle of what it says.
    Flip,
    /// It is this response code and nothing else.
    Code(u32),
    /// It never comes: the connection is cut instead.
    Cut,
    /// Half of it comes, then the connection is cut.
    Short,
    /// It comes so many milliseconds later.
    Late(u64),
    /// It comes when the fault is over, if ever.
    Never,
}

/// TPM_CC_Sign.
pub(crate) const SIGN: u32 = 0x15d;
/// TPM_CC_Load.
pub(crate) const LOAD: u32 = 0x157;
/// TPM_CC_StartAuthSession.
pub(crate) const START_SESSION: u32 = 0x176;

impl TpmProxy {
    pub(crate) fn before(swtpm: &SwTpm) -> Self {
        let (port, control, data) = loop {
            let port = free_pair();
            let bind = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port));
            if let (Ok(data), Ok(control)) = (bind(port), bind(port + 1)) {
                break (port, control, data);
            }
        };
        let shared = Arc::new(Mutex::new(Shared::default()));
        let (behind, state) = (swtpm.port(), Arc::clone(&shared));
        thread::spawn(move || {
            for client in data.incoming().flatten() {
                let state = Arc::clone(&state);
                thread::spawn(move || commands(client, behind, &state));
            }
        });
        thread::spawn(move || {
            for client in control.incoming().flatten() {
                thread::spawn(move || pass(client, behind + 1));
            }
        });
        Self { port, shared }
    }

    pub(crate) fn tcti(&self) -> String {
        tcti(self.port)
    }

    /// The codes of the commands since the last call.
    pub(crate) fn commands(&self) -> Vec<u32> {
        std::mem::take(&mut self.shared.lock().unwrap().commands)
    }

    /// Changes the next answer to a command.
    pub(crate) fn spoil(&self, command: u32, fault: Fault) {
        self.shared.lock().unwrap().fault = Some((command, fault));
    }

    /// Changes every answer to a command, until [`Self::mend`].
    pub(crate) fn spoil_all(&self, command: u32, fault: Fault) {
        let mut shared = self.shared.lock().unwrap();
        (shared.fault, shared.lasts) = (Some((command, fault)), true);
    }

    /// Changes nothing any more.
    pub(crate) fn mend(&self) {
        let mut shared = self.shared.lock().unwrap();
        (shared.fault, shared.lasts) = (None, false);
    }

    /// Has new connections closed at once, and those that there are with their next command.
    pub(crate) fn refuse(&self, refuses: bool) {
        self.shared.lock().unwrap().refuses = refuses;
    }

    /// Sends TPM2_Startup before the next command, as a machine's firmware does after a reset.
    pub(crate) fn start_up(&self) {
        self.shared.lock().unwrap().starts_up = true;
    }
}

/// Commands one way, answers the other; both begin with a tag of two bytes, a size of four, and a code of four.
fn commands(mut client: TcpStream, behind: u16, shared: &Mutex<Shared>) -> io::Result<()> {
    if shared.lock().unwrap().refuses {
        return client.shutdown(Shutdown::Both);
    }
    let mut tpm = TcpStream::connect((Ipv4Addr::LOCALHOST, behind))?;
    loop {
        let command = packet(&mut client)?;
        let code = u32::from_be_bytes(command[6..10].try_into().unwrap());
        let (fault, starts_up, refuses) = {
            let mut shared = shared.lock().unwrap();
            shared.commands.push(code);
            let lasts = shared.lasts;
            let fault = shared.fault.filter(|(of, _)| *of == code).map(|(_, fault)| fault);
            shared.fault.take_if(|(of, _)| *of == code && !lasts);
            (fault, std::mem::take(&mut shared.starts_up), shared.refuses)
        };
        if refuses {
            return client.shutdown(Shutdown::Both);
        }
        if starts_up {
            tpm.write_all(START_UP)?;
            packet(&mut tpm)?;
        }
        tpm.write_all(&command)?;
        let mut answer = packet(&mut tpm)?;
        match fault {
            Some(Fault::Flip) => {
                let place = answer.len() - 80;
                answer[place] ^= 1;
            }
            Some(Fault::Code(code)) => {
                answer = [&[0x80, 0x01, 0, 0, 0, 10], code.to_be_bytes().as_slice()].concat();
            }
            Some(Fault::Cut) => return client.shutdown(Shutdown::Both),
            Some(Fault::Short) => {
                client.write_all(&answer[..answer.len() / 2])?;
                return client.shutdown(Shutdown::Both);
            }
            Some(Fault::Late(millis)) => thread::sleep(Duration::from_millis(millis)),
            Some(Fault::Never) => {
                while shared.lock().unwrap().fault.is_some() {
                    thread::sleep(Duration::from_millis(5));
                }
            }
            None => {}
        }
        client.write_all(&answer)?;
    }
}

/// TPM2_Startup(CLEAR).
const START_UP: &[u8] = &[0x80, 0x01, 0, 0, 0, 12, 0, 0, 1, 0x44, 0, 0];

fn packet(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut packet = vec![0; 10];
    stream.read_exact(&mut packet)?;
    let size = u32::from_be_bytes(packet[2..6].try_into().unwrap()) as usize;
    packet.resize(size, 0);
    stream.read_exact(&mut packet[10..])?;
    Ok(packet)
}

fn pass(mut client: TcpStream, behind: u16) -> io::Result<()> {
    let mut tpm = TcpStream::connect((Ipv4Addr::LOCALHOST, behind))?;
    let (mut from, mut to) = (client.try_clone()?, tpm.try_clone()?);
    thread::spawn(move || {
        let _ = io::copy(&mut from, &mut to);
        to.shutdown(Shutdown::Write)
    });
    io::copy(&mut tpm, &mut client)?;
    client.shutdown(Shutdown::Write)
}
