// What conv_coop.wgsl multiplies: matrices of SIDE by SIDE elements of type Part, and how the subgroups of 64 invocations
// share the tile: DOWN of them one below the other, ACROSS side by side.

//@ coop_f16
const SIDE: u32 = 16u;
alias Part = f16;
alias MatrixA = coop_mat16x16<f16, A>;
alias MatrixB = coop_mat16x16<f16, B>;
alias MatrixC = coop_mat16x16<f32, C>;

//@ coop_f16_8
const SIDE: u32 = 8u;
alias Part = f16;
alias MatrixA = coop_mat8x8<f16, A>;
alias MatrixB = coop_mat8x8<f16, B>;
alias MatrixC = coop_mat8x8<f32, C>;

//@ coop_f32
const SIDE: u32 = 8u;
alias Part = f32;
alias MatrixA = coop_mat8x8<f32, A>;
alias MatrixB = coop_mat8x8<f32, B>;
alias MatrixC = coop_mat8x8<f32, C>;

//@ teams_1
const DOWN: u32 = 1u;
const ACROSS: u32 = 1u;

//@ teams_2
const DOWN: u32 = 1u;
const ACROSS: u32 = 2u;

//@ teams_4
const DOWN: u32 = 2u;
const ACROSS: u32 = 2u;

//@ teams_8
const DOWN: u32 = 2u;
const ACROSS: u32 = 4u;
