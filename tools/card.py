"""Draw nbs/images/card.png, the picture that goes with a link to the website: the two streams of one question.

Only a change of this file needs another run; the picture is committed."""
from pathlib import Path
import matplotlib
matplotlib.use('Agg')
import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch,Rectangle
from PIL import Image

OUT = Path(__file__).resolve().parent.parent/'nbs/images/card.png'
INK,PALE,BOX = '#1d2433','#f4f5f7','#d6336c'

def tile(ax, x, y, top, bottom, side=52):
    ax.add_patch(Rectangle((x, y), side, side/2, fc=bottom, ec='none'))
    ax.add_patch(Rectangle((x, y+side/2), side, side/2, fc=top, ec='none'))

def draw():
    fig = plt.figure(figsize=(12, 6.3), dpi=100, facecolor='white')  # 1200 x 630 is what links are shown with
    ax = fig.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, 1200), ylim=(0, 630))
    ax.axis('off')
    ax.text(70, 545, 'iVGR', size=52, weight='bold', color=INK, va='center')
    ax.text(70, 478, 'Train localisation in, leave it silent', size=25, color=INK, va='center')
    ax.add_patch(Rectangle((70, 120), 270, 270, fc=PALE, ec='none'))
    tile(ax, 230, 290, '#2b8a3e', '#f2c80f')
    tile(ax, 120, 160, '#7048b8', '#22b8cf')
    ax.add_patch(Rectangle((225, 285), 62, 62, fill=False, ec=BOX, lw=3))
    ax.text(70, 88, 'What colour is the top of the yellow tile?', size=14, color=INK, va='center')
    for y,name,reply,what in ((330, 'grounded', 'The yellow tile [225,285,287,347] has a green top.', 'rewarded for its boxes'),
                             (180, 'textual', 'The yellow tile, in the upper right, has a green top.', 'rewarded for saying the same: this is what you use')):
        ax.add_patch(FancyArrowPatch((360, 255), (440, y), arrowstyle='-|>', mutation_scale=22, lw=2.5, color=INK))
        colour = BOX if name=='grounded' else '#1971c2'
        ax.text(462, y+32, name, size=21, weight='bold', color=colour, va='center')
        ax.text(462, y-4, reply, size=18, color=INK, va='center')
        ax.text(462, y-38, what, size=15, color='#6b7280', va='center')
    fig.savefig(OUT)
    plt.close(fig)
    Image.open(OUT).convert('RGB').quantize(64).save(OUT, optimize=True)  # from some 60 kB to a third

if __name__=='__main__': draw()
