//! The plain TCP protocol: the client says what it wants in a line.
//!
//! | line | what happens |
//! |---|---|
//! | `name` | the server's name in a line; the connection stays open |
//! | `fin` | the name, then the server closes first |
//! | `rst` | the name, then the server resets the connection |
//! | `late` | the server reads until the client's FIN, then says its name and closes: a half-closed connection |

use std::io;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// Longest line there is, with its end.
const LINE: usize = 8;

pub async fn serve(mut stream: TcpStream, name: &str) -> io::Result<()> {
    let answer = format!("{name}\n");
    loop {
        match line(&mut stream).await?.as_slice() {
            b"name" => stream.write_all(answer.as_bytes()).await?,
            b"fin" => {
                stream.write_all(answer.as_bytes()).await?;
                stream.shutdown().await?;
                // Until the client has closed too, or the rest of what it sends would be answered with a RST.
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
            // The end, or something else that is not ours.
            _ => return Ok(()),
        }
    }
}

/// One line without its end. A byte a read: lines are short and nothing behind one may be taken.
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
