//! A real Chromium, driven over its DevTools protocol.

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use harness::Process;
use harness::process::ProcessBuilder;
use serde_json::{Value, json};
use tungstenite::{Message, WebSocket};

pub struct Browser {
    _process: Process,
    socket: WebSocket<TcpStream>,
    next: u64,
}

fn program() -> PathBuf {
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let path = std::env::var_os("PATH").unwrap();
    let found = std::env::split_paths(&path)
        .flat_map(|dir| names.map(|name| dir.join(name)))
        .find(|candidate| candidate.is_file());
    found.unwrap_or_else(|| panic!("no Chromium: scripts/setup test installs it"))
}

fn connect(port: &str, path: &str) -> WebSocket<TcpStream> {
    let stream = TcpStream::connect(format!("127.0.0.1:{port}")).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    tungstenite::client(format!("ws://127.0.0.1:{port}{path}"), stream).unwrap().0
}

impl Browser {
    /// A browser with one empty page.
    pub fn start(dir: &Path) -> Self {
        let profile = dir.join("profile");
        let process = ProcessBuilder::new(program(), dir.join("chromium.log"))
            .args([
                "--headless=new",
                // Tests run as root, where its sandbox does not work.
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--no-first-run",
                "--disable-background-networking",
                "--remote-debugging-port=0",
                &format!("--user-data-dir={}", profile.display()),
                "about:blank",
            ])
            .start()
            .unwrap();
        let port_file = profile.join("DevToolsActivePort");
        let deadline = Instant::now() + Duration::from_secs(60);
        let (port, path) = loop {
            let text = std::fs::read_to_string(&port_file).unwrap_or_default();
            let mut lines = text.lines();
            if let (Some(port), Some(path)) = (lines.next(), lines.next()) {
                break (port.to_owned(), path.to_owned());
            }
            assert!(Instant::now() < deadline, "{}", process.log_tail());
            std::thread::sleep(Duration::from_millis(50));
        };
        // The browser first, which makes a page, then that page.
        let mut browser = Self { _process: process, socket: connect(&port, &path), next: 0 };
        let made = browser.call("Target.createTarget", &json!({"url": "about:blank"}));
        let page = made["targetId"].as_str().unwrap();
        browser.socket = connect(&port, &format!("/devtools/page/{page}"));
        browser.call("Page.enable", &json!({}));
        browser.call("Runtime.enable", &json!({}));
        browser
    }

    pub fn call(&mut self, method: &str, parameters: &Value) -> Value {
        self.next += 1;
        let request = json!({"id": self.next, "method": method, "params": parameters});
        self.socket.send(Message::text(request.to_string())).unwrap();
        loop {
            let message = self.socket.read().unwrap();
            let Ok(text) = message.into_text() else { continue };
            let Ok(answer) = serde_json::from_str::<Value>(&text) else { continue };
            if answer["id"] == self.next {
                assert!(answer.get("error").is_none(), "{method}: {answer}");
                return answer["result"].clone();
            }
        }
    }

    /// Width and height in points, and whether people asked for dark.
    pub fn looks(&mut self, width: u32, height: u32, dark: bool) {
        let size = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500});
        self.call("Emulation.setDeviceMetricsOverride", &size);
        let scheme = if dark { "dark" } else { "light" };
        let media = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.call("Emulation.setEmulatedMedia", &media);
    }

    pub fn open(&mut self, url: &str) {
        self.call("Page.navigate", &json!({"url": url}));
    }

    /// What an expression is in the page.
    pub fn value(&mut self, expression: &str) -> Value {
        let parameters =
            json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        let answer = self.call("Runtime.evaluate", &parameters);
        assert!(answer.get("exceptionDetails").is_none(), "{expression}: {answer}");
        answer["result"]["value"].clone()
    }

    pub fn wait(&mut self, what: &str, expression: &str) {
        // Looks are counted, not time: the whole machine may have been asleep.
        for _ in 0..600 {
            // A page that is only being loaded has no body yet.
            if self.value(&format!("!!document.body && ({expression})")) == json!(true) {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        panic!("not {what}: {}", self.value("document.body ? document.body.innerText : ''"));
    }

    /// The whole page as a picture.
    pub fn picture(&mut self, path: &Path) {
        let whole = self.call("Page.getLayoutMetrics", &json!({}))["cssContentSize"].clone();
        let clip =
            json!({"x": 0, "y": 0, "width": whole["width"], "height": whole["height"], "scale": 1});
        let parameters = json!({"format": "png", "captureBeyondViewport": true, "clip": clip});
        let answer = self.call("Page.captureScreenshot", &parameters);
        let bytes = decode(answer["data"].as_str().unwrap());
        std::fs::write(path, bytes).unwrap();
    }
}

fn decode(text: &str) -> Vec<u8> {
    openssl::base64::decode_block(text).unwrap()
}
