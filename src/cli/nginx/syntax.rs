//! Reading a configuration of nginx: words, blocks, and files that are included.

use std::fs;
use std::path::{Path, PathBuf};

/// Blocks in blocks, and files in files: nginx's own go five deep.
const MOST_LEVELS: usize = 32;

/// A directive, as `name word word;` or `name word { … }`.
#[derive(Debug)]
pub(super) struct Directive {
    /// The file it stands in, and its line there.
    pub(super) file: PathBuf,
    pub(super) line: usize,
    pub(super) name: String,
    pub(super) words: Vec<String>,
    /// Empty where it has none.
    pub(super) block: Vec<Directive>,
}

/// Reads a file with all that it includes. Names in it are relative to its folder, as in nginx.
///
/// # Errors
/// With the file, the line and what is wrong there.
pub(super) fn read(file: &Path) -> Result<Vec<Directive>, String> {
    let folder = file.parent().unwrap_or(Path::new("."));
    read_file(file, folder, 0)
}

fn read_file(file: &Path, folder: &Path, level: usize) -> Result<Vec<Directive>, String> {
    let text = fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
    let mut reader = Reader {
        file,
        folder,
        rest: text.as_str(),
        line: 1,
    };
    reader.directives(level, false)
}

/// What stands next.
enum Token {
    Word(String),
    End,
    Open,
    Close,
}

struct Reader<'a> {
    file: &'a Path,
    folder: &'a Path,
    rest: &'a str,
    line: usize,
}

impl Reader<'_> {
    fn fault(&self, what: impl std::fmt::Display) -> String {
        format!("{}:{}: {what}", self.file.display(), self.line)
    }

    /// The directives up to the end of the block, or of the file.
    fn directives(&mut self, level: usize, in_block: bool) -> Result<Vec<Directive>, String> {
        if level > MOST_LEVELS {
            return Err(self.fault("too many levels of blocks or files"));
        }
        let mut directives = Vec::new();
        let mut words: Vec<String> = Vec::new();
        let mut line = self.line;
        loop {
            let token = match self.token()? {
                Some(token) => token,
                None if in_block => return Err(self.fault("a block is not closed")),
                None if !words.is_empty() => return Err(self.fault("a ; is missing")),
                None => return Ok(directives),
            };
            let block = match token {
                Token::Word(word) => {
                    if words.is_empty() {
                        line = self.line;
                    }
                    words.push(word);
                    continue;
                }
                Token::Close if in_block && words.is_empty() => return Ok(directives),
                Token::Close => return Err(self.fault("} without a block, or a ; is missing")),
                Token::End => Vec::new(),
                // What maps say is data: words that are no directives.
                Token::Open => self.directives(level + 1, true)?,
            };
            let mut taken = std::mem::take(&mut words).into_iter();
            let Some(name) = taken.next() else {
                return Err(self.fault("a directive without a name"));
            };
            let words: Vec<_> = taken.collect();
            if name == "include" {
                for file in self.included(words.first().map_or("", String::as_str))? {
                    directives.extend(read_file(&file, self.folder, level + 1)?);
                }
            } else {
                directives.push(Directive {
                    file: self.file.to_owned(),
                    line,
                    name,
                    words,
                    block,
                });
            }
        }
    }

    fn token(&mut self) -> Result<Option<Token>, String> {
        loop {
            let Some(first) = self.rest.chars().next() else {
                return Ok(None);
            };
            match first {
                '#' => {
                    let end = self.rest.find('\n').unwrap_or(self.rest.len());
                    self.skip(end);
                }
                ';' | '{' | '}' => {
                    self.skip(1);
                    return Ok(Some(match first {
                        ';' => Token::End,
                        '{' => Token::Open,
                        _ => Token::Close,
                    }));
                }
                '"' | '\'' => return self.quoted(first).map(Some),
                space if space.is_whitespace() => self.skip(space.len_utf8()),
                _ => return Ok(Some(self.bare())),
            }
        }
    }

    fn skip(&mut self, bytes: usize) {
        let (passed, rest) = self.rest.split_at(bytes);
        self.line += passed.matches('\n').count();
        self.rest = rest;
    }

    fn quoted(&mut self, quote: char) -> Result<Token, String> {
        let mut word = String::new();
        let mut characters = self.rest.char_indices().skip(1);
        while let Some((at, character)) = characters.next() {
            match character {
                '\\' => word.extend(characters.next().map(|(_, escaped)| escaped)),
                end if end == quote => {
                    self.skip(at + 1);
                    return Ok(Token::Word(word));
                }
                other => word.push(other),
            }
        }
        Err(self.fault("a quote is not closed"))
    }

    fn bare(&mut self) -> Token {
        let mut word = String::new();
        let mut end = self.rest.len();
        let mut characters = self.rest.char_indices();
        while let Some((at, character)) = characters.next() {
            match character {
                '\\' => word.extend(characters.next().map(|(_, escaped)| escaped)),
                // ${name} is a part of the word.
                '{' if word.ends_with('$') => {
                    word.push('{');
                    for (_, inside) in characters.by_ref() {
                        word.push(inside);
                        if inside == '}' {
                            break;
                        }
                    }
                }
                space if space.is_whitespace() || matches!(space, ';' | '{' | '}') => {
                    end = at;
                    break;
                }
                other => word.push(other),
            }
        }
        self.skip(end);
        Token::Word(word)
    }

    /// The files that an `include` means: one, or those that a `*` in the last part stands for.
    fn included(&self, name: &str) -> Result<Vec<PathBuf>, String> {
        let path = self.folder.join(name);
        let last = path.file_name().unwrap_or_default().to_string_lossy();
        let Some((before, after)) = last.split_once('*') else {
            return Ok(vec![path]);
        };
        if after.contains('*') {
            return Err(self.fault("only one * is understood here"));
        }
        let Ok(entries) = fs::read_dir(path.parent().unwrap_or(self.folder)) else {
            return Ok(Vec::new());
        };
        let mut files: Vec<_> = entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|file| {
                let name = file.file_name().unwrap_or_default().to_string_lossy();
                name.len() >= before.len() + after.len()
                    && name.starts_with(before)
                    && name.ends_with(after)
            })
            .collect();
        files.sort();
        Ok(files)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Vec<Directive>, String> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("nginx.conf");
        fs::write(&file, text).unwrap();
        read(&file)
    }

    #[test]
    fn words_quotes_comments_and_blocks_are_read_as_nginx_reads_them() {
        let text = "a 1 \"two # words\" 'it''s';\n# no; directive {\nb x { c ${d}00;\n e \\;f; }\n";
        // nginx wants a space behind a closing quote; here the next word begins.
        let all = parse(text).unwrap();
        assert_eq!(all[0].words, ["1", "two # words", "it", "s"]);
        assert_eq!((all[1].name.as_str(), all[1].line), ("b", 3));
        assert_eq!(all[1].block[0].words, ["${d}00"]);
        assert_eq!(all[1].block[1].words, [";f"]);
        assert_eq!(all[1].block[1].line, 4);
    }

    #[test]
    fn what_is_broken_is_told_with_its_line() {
        for (text, line) in [
            ("a;\nb {\n", ":3: "),
            ("a;\n}\n", ":2: "),
            ("a\nb", ":2: "),
            ("a 'b", ":1: "),
        ] {
            let fault = parse(text).unwrap_err();
            assert!(fault.contains(line), "{fault}");
        }
        assert!(parse(&"a {".repeat(100_000)).is_err());
    }

    #[test]
    fn files_are_included_where_they_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        write(
            "nginx.conf",
            "x { include part-*.conf; }\ninclude none*.conf;",
        );
        write("part-2.conf", "second;");
        write("part-1.conf", "first;");
        write("part-3.txt", "third;");
        let all = read(&folder.path().join("nginx.conf")).unwrap();
        let names: Vec<_> = all[0].block.iter().map(|one| one.name.as_str()).collect();
        assert_eq!(names, ["first", "second"]);
        write("nginx.conf", "include missing.conf;");
        assert!(read(&folder.path().join("nginx.conf")).is_err());
        write("nginx.conf", "include nginx.conf;");
        assert!(read(&folder.path().join("nginx.conf")).is_err());
    }
}
