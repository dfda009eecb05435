//! Rows of text in columns.

/// A column is made no wider for a single long cell, such as an error: that sticks out.
const WIDEST: usize = 200;

/// The cells of each row side by side, each column as wide as its widest cell.
pub fn columns<const N: usize>(rows: &[[String; N]]) -> impl Iterator<Item = String> {
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or_default();
    let widths: [usize; N] = std::array::from_fn(|column| width(column).min(WIDEST));
    rows.iter().map(move |row| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_cell_is_told_whole_and_widens_nothing_beyond_reason() {
        let long = "x".repeat(100_000);
        let rows = [["a", "b", "c"].map(String::from), ["aaa".to_owned(), long.clone(), "c".to_owned()]];
        let lines: Vec<String> = columns(&rows).collect();
        assert_eq!(lines, [format!("a    b{}  c", " ".repeat(WIDEST - 1)), format!("aaa  {long}  c")]);
    }
}
