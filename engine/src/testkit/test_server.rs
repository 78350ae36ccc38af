//! A handler under test, and its clients.

use std::cell::RefCell;
use std::fmt;
use std::io;
use std::io::Read;
use std::io::Write;
use std::rc::Rc;
use std::time::Duration;

use crate::client;
use crate::client::WebSocket;
use crate::connect::Connect;
use crate::http1;
use crate::http1::HEADER_COUNT_MAX;
use crate::http1::Request;
use crate::protocol::Role;
use crate::protocol::handshake;
use crate::protocol::handshake::UpgradeRequest;
use crate::reactor::sim::SimClient;
use crate::worker::Handler;
use crate::worker::Remote;

use super::SimServer;
use super::SimSettings;

/// What the network holds of what a client has not read.
const CAPACITY: usize = 1 << 20;

/// Turns after which nothing more will come by itself.
const TURNS_MAX: usize = 500;

/// A handler on a simulated network, in virtual time: a server to its clients, and a client
/// where the handler makes connections.
pub struct TestServer<H: Handler>(Rc<RefCell<SimServer<H>>>);

/// A client's end of a connection in memory. A read that finds nothing lets the server turn,
/// and fails with [`WouldBlock`](io::ErrorKind::WouldBlock) if nothing comes of that.
pub struct TestStream<H: Handler> {
    client: SimClient,
    server: Rc<RefCell<SimServer<H>>>,
}

impl<H: Handler> TestServer<H> {
    /// A server with the default limits, and a network without faults.
    pub fn new(handler: H) -> Self {
        Self::with(SimSettings::default(), handler)
    }

    /// A server with these settings.
    ///
    /// # Panics
    /// The limits make no sense.
    pub fn with(settings: SimSettings, handler: H) -> Self {
        Self(Rc::new(RefCell::new(SimServer::new(settings, handler))))
    }

    /// A client whose WebSocket to this target (`/chat?room=1`) is open.
    ///
    /// # Errors
    /// As for [`client::connect`]: [`client::Error::Refused`] if the handler rejects it.
    pub fn connect(&self, target: &str) -> Result<WebSocket<TestStream<H>>, client::Error> {
        let connect = Connect::new(&format!("ws://test.example{target}"))?;
        self.connect_with(client::Builder::new(connect))
    }

    /// A client with settings of its own: headers, subprotocols, limits.
    ///
    /// # Errors
    /// As for [`connect`](Self::connect).
    pub fn connect_with(
        &self,
        builder: client::Builder,
    ) -> Result<WebSocket<TestStream<H>>, client::Error> {
        builder.handshake(self.stream())
    }

    /// A connection that nothing has been sent over yet.
    pub fn stream(&self) -> TestStream<H> {
        let client = self.0.borrow().net().connect(CAPACITY);
        self.stream_of(client)
    }

    fn stream_of(&self, client: SimClient) -> TestStream<H> {
        TestStream {
            client,
            server: Rc::clone(&self.0),
        }
    }

    /// The far end of the next connection that the handler has made, as the server that
    /// accepts it, with this subprotocol.
    ///
    /// # Errors
    /// There is none ([`WouldBlock`](io::ErrorKind::WouldBlock)), or its request is not one for
    /// a WebSocket.
    pub fn accept(
        &self,
        subprotocol: Option<&str>,
    ) -> Result<WebSocket<TestStream<H>>, client::Error> {
        self.turn();
        let client = self.0.borrow().net().accept(CAPACITY);
        let none = || io::Error::from(io::ErrorKind::WouldBlock);
        let mut stream = self.stream_of(client.ok_or_else(none)?);
        let mut received = Vec::new();
        let len = loop {
            if let Some(len) = http1::head_len(&received, 0) {
                break len;
            }
            let mut buffer = [0; 1024];
            match stream.read(&mut buffer)? {
                0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                len => received.extend_from_slice(&buffer[..len]),
            }
        };
        let mut storage = [http1::EMPTY_HEADER; HEADER_COUNT_MAX];
        let invalid = |error: String| io::Error::new(io::ErrorKind::InvalidData, error);
        let request = Request::parse(&received[..len], &mut storage);
        let request = request.map_err(|error| invalid(error.to_string()))?;
        let upgrade = UpgradeRequest::check(request);
        let upgrade = upgrade.map_err(|error| invalid(error.to_string()))?;
        let mut head = Vec::new();
        handshake::write_accept(&mut head, &upgrade.accept_key(), subprotocol, None, "");
        stream.write_all(&head)?;
        let limits = crate::config::Limits::default();
        WebSocket::from_stream(stream, Role::Server, &received[len..], &limits)
    }

    /// Does what there is to do, without letting time pass.
    pub fn turn(&self) {
        self.0
            .borrow_mut()
            .turn()
            .expect("the network is simulated");
    }

    /// Lets time pass.
    pub fn pass(&self, time: Duration) {
        self.0
            .borrow_mut()
            .pass(time)
            .expect("the network is simulated");
    }

    /// Calls `look` with the handler.
    pub fn with_handler<R>(&self, look: impl FnOnce(&mut H) -> R) -> R {
        look(self.0.borrow_mut().handler_mut())
    }

    /// Reaches the connections, as from another thread.
    pub fn remote(&self) -> Remote {
        self.0.borrow().remote().clone()
    }

    /// Connections, in whatever phase.
    pub fn connections(&self) -> usize {
        self.0.borrow().connections()
    }

    /// Begins to end the server: 1001 to everyone.
    pub fn shut_down(&self) {
        self.0.borrow_mut().shut_down();
    }
}

impl<H: Handler> fmt::Debug for TestServer<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TestServer")
            .field("connections", &self.connections())
            .finish_non_exhaustive()
    }
}

impl<H: Handler> fmt::Debug for TestStream<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TestStream")
    }
}

impl<H: Handler> Read for TestStream<H> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        for _ in 0..TURNS_MAX {
            let bytes = self.client.receive(buffer.len());
            if !bytes.is_empty() {
                buffer[..bytes.len()].copy_from_slice(&bytes);
                return Ok(bytes.len());
            }
            if self.client.is_finished() {
                return Ok(0);
            }
            self.server.borrow_mut().turn()?;
        }
        Err(io::ErrorKind::WouldBlock.into())
    }
}

impl<H: Handler> Write for TestStream<H> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.client.is_closed_by_server() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        self.client.send(bytes);
        self.server.borrow_mut().turn()?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<H: Handler> Drop for TestStream<H> {
    fn drop(&mut self) {
        // As the kernel does.
        self.client.shutdown();
    }
}
