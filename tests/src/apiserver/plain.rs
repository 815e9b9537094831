//! The plain TCP protocol: the client sends one line with what it wants.
//!
//! | line | what happens |
//! |---|---|
//! | `name` | the server answers with its name; the connection stays open |
//! | `fin` | the server answers with its name and closes first |
//! | `rst` | the server answers with its name and resets the connection |
//! | `late` | the server reads until the client's FIN, then answers with its name and closes: a half-closed connection |

use std::io;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// The longest line, including its end.
const LINE: usize = 8;

pub async fn serve(mut stream: TcpStream, name: &str) -> io::Result<()> {
    let answer = format!("{name}\n");
    loop {
        match line(&mut stream).await?.as_slice() {
            b"name" => stream.write_all(answer.as_bytes()).await?,
            b"fin" => {
                stream.write_all(answer.as_bytes()).await?;
                stream.shutdown().await?;
                // Wait until the client has closed too: a RST would answer the rest of what it
                // sends.
                return until_end(&mut stream).await;
            }
            b"rst" => {
                stream.write_all(answer.as_bytes()).await?;
                return stream.set_zero_linger();
            }
            b"late" => {
                until_end(&mut stream).await?;
                stream.write_all(answer.as_bytes()).await?;
                return stream.shutdown().await;
            }
            // The end of input, or something that is not part of the protocol.
            _ => return Ok(()),
        }
    }
}

/// Reads one line, without its end. It reads byte by byte: lines are short, and nothing behind one
/// may be consumed.
async fn line(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut line = Vec::with_capacity(LINE);
    while line.len() < LINE {
        match stream.read_u8().await {
            Ok(b'\n') => break,
            Ok(byte) => line.push(byte),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(Vec::new()),
            Err(error) => return Err(error),
        }
    }
    Ok(line)
}

async fn until_end(stream: &mut TcpStream) -> io::Result<()> {
    let mut ignored = [0; 512];
    while stream.read(&mut ignored).await? > 0 {}
    Ok(())
}
